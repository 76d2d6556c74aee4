-- One stream of the generic namespace at one moment, without its entries. ARGV: prefix, generation. Answers its hash and
-- its producers: were they read later than the tail, a producer would be told that what is not there was.
local g = ARGV[2]
return { 'ok', call('HGETALL', P .. 'stream:' .. g), call('HGETALL', P .. 'stream:' .. g .. ':producers') }
