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

    /// Says what is wrong in a line of a file, and shows it.
    pub(crate) fn at(file: &str, line: usize, column: usize, message: &str, text: &str) -> BadInput {
        // A tab is one column wide here, so that the caret stands right.
        let text = text.replace('\t', " ");
        BadInput(format!("{file}:{line}:{column}: {message}\n    {text}\n    {:>column$}", "^"))
    }
}

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.0)
    }
}

impl core::error::Error for BadInput {}
