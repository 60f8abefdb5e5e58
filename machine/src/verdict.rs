//! Verdicts: what an execution is found guilty of. Kinds are never merged: a pointer that is *held* after its object was
//! freed, one that is *dereferenced*, and a root that the *hardware reaches* are three different things.

use core::fmt;

use crate::mix::fold;

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// An invariant of the program does not hold. A finding, not an error: what comes of it is to be seen.
    Invariant,
    /// A pointer to a freed object is still held. A finding, not an error: nobody has used it yet.
    Holds,
    /// Software accessed a freed object.
    Dereferences,
    /// Software accessed memory that belongs to no object.
    OutOfBounds,
    /// The hardware can reach a freed page table.
    HardwareReaches,
    /// A translation was used that is not, or is no longer, that of the page.
    StaleTranslation,
    /// An object was freed twice.
    DoubleFree,
    /// Something was freed that cannot be.
    InvalidFree,
    /// An object is alive that nobody can free any more.
    Leak,
    /// Everybody waits.
    Deadlock,
    /// An execution was longer than the limit: it may never end.
    TooLong,
    /// Something that may sleep ran where nothing may.
    SleepingWhileAtomic,
    /// Something ran in a context that its contract forbids.
    WrongContext,
    /// The library warned of a broken rule.
    Warning,
    /// A condition of the program does not hold.
    Assertion,
    /// The code panicked.
    Panic,
}

impl Kind {
    /// All kinds, errors and findings.
    pub const ALL: [Kind; 16] = [
        Kind::Invariant,
        Kind::Holds,
        Kind::Dereferences,
        Kind::OutOfBounds,
        Kind::HardwareReaches,
        Kind::StaleTranslation,
        Kind::DoubleFree,
        Kind::InvalidFree,
        Kind::Leak,
        Kind::Deadlock,
        Kind::TooLong,
        Kind::SleepingWhileAtomic,
        Kind::WrongContext,
        Kind::Warning,
        Kind::Assertion,
        Kind::Panic,
    ];

    /// Whether it is only a finding: the execution goes on, and whoever asked decides what it is worth.
    pub const fn is_finding(self) -> bool {
        matches!(self, Kind::Invariant | Kind::Holds)
    }

    /// How much it says of two things found in one execution: the greater one is shown.
    pub const fn gravity(self) -> u8 {
        match self {
            Kind::Invariant => 0,
            Kind::Holds => 1,
            _ => 2,
        }
    }

    /// Its name in reports and files.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Invariant => "invariant",
            Kind::Holds => "holds",
            Kind::Dereferences => "dereferences",
            Kind::OutOfBounds => "out-of-bounds",
            Kind::HardwareReaches => "hardware-reaches",
            Kind::StaleTranslation => "stale-translation",
            Kind::DoubleFree => "double-free",
            Kind::InvalidFree => "invalid-free",
            Kind::Leak => "leak",
            Kind::Deadlock => "deadlock",
            Kind::TooLong => "too-long",
            Kind::SleepingWhileAtomic => "sleeping-while-atomic",
            Kind::WrongContext => "wrong-context",
            Kind::Warning => "warning",
            Kind::Assertion => "assertion",
            Kind::Panic => "panic",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that was found in one execution.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Verdict {
    /// What.
    pub kind: Kind,
    /// In words.
    pub message: String,
}

impl Verdict {
    /// The same in every process.
    pub(crate) fn hash(&self) -> u64 {
        self.message.bytes().fold(self.kind as u64, |hash, byte| fold(hash, u64::from(byte)))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}
