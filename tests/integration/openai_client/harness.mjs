// What the tests of the unmodified `openai` client share.

const SKIPPED = 77;

// The client's class; ends the test as skipped where it is not installed.
export async function loadClient() {
  try {
    return (await import('openai')).default;
  } catch (error) {
    console.log(`skipped: ${error.message} (run npm ci in tests/integration/openai_client)`);
    process.exit(SKIPPED);
  }
}

// tests: {sentence: async function}. Returns how many failed.
export async function runTests(tests) {
  let failed = 0;
  for (const [name, test] of Object.entries(tests)) {
    try {
      await test();
      console.log(`ok      ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED  ${name}\n${error.stack}`);
    }
  }
  return failed;
}
