import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["conformance.test.mjs"],
    // Some tests of the suite wait for a whole long poll without saying so; a loaded machine is slow.
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
})
