//! Bad input: one clear error, and exit status 2.

use core::fmt;

/// What is wrong with the input, with its place if it has one.
#[derive(Debug)]
pub(crate) struct BadInput(String);

impl BadInput {
    /// Says what is wrong.
    pub(crate) fn new(message: impl Into<String>) -> BadInput {
        BadInput(message.into())
    }
}

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.0)
    }
}

impl core::error::Error for BadInput {}
