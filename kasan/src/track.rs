//! Tracks: who allocated, who freed, who asked for it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// One line of a call trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The function, by the name that its kernel counterpart has.
    pub function: &'static str,
    /// Where it was entered, or where in it the access is.
    pub file: &'static str,
    /// The line there.
    pub line: u32,
    /// Whether an interrupt handler begins here: this frame and those further in ran in one.
    pub irq: bool,
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.function, self.file, self.line)
    }
}

/// Who did something to an object, and where.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Track {
    /// The task's number; an agent that is no task has one too.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// The CPU it ran on.
    pub cpu: usize,
    /// When, in steps of the machine.
    pub step: u64,
    /// The call trace, innermost first.
    pub frames: Vec<Frame>,
}
