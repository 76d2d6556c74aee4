-- Records that had ended take their place, as they were. ARGV: prefix, the backup, id, …
for i = 3, #ARGV do
  local id = ARGV[i]
  local waiting, record = key(id, 'restored'), key(id, 'record')
  if call('EXISTS', waiting) == 1 then
    call('HSET', waiting, 'restored_from', ARGV[2])
    call('RENAME', waiting, record)
  end
end
return { 'ok' }
