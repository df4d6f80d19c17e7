//! The guest of Linux, as the tests have it.

#[path = "../../tests/e2e/linux/image.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
pub(crate) mod image;
#[path = "../../tests/e2e/linux/witness.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
pub(crate) mod witness;
