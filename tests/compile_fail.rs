//! What must not compile: a dangling `active_mm`, mixed-up references, a strategy on a machine that cannot carry it.
//!
//! The expected messages are tied to the compiler of `rust-toolchain.toml`; `TRYBUILD=overwrite` renews them.

#[test]
fn misuse_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/compile-fail/*.rs");
}
