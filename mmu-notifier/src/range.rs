//! What is invalidated, and why.

use core::fmt;
use core::ops;

/// Why a range is invalidated (Linux `enum mmu_notifier_event`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Event {
    /// It is unmapped: munmap, mremap's old place, an address space that ends.
    Unmap,
    /// Entries are cleared, or come to map another page, and the range stays mapped: reclaim, migration, copy on write.
    Clear,
    /// The protection of a part of the address space changes.
    ProtectionVma,
    /// The protection of single pages changes; that of the address space does not.
    ProtectionPage,
    /// Entries are write-protected, so that the next write is seen.
    SoftDirty,
    /// The whole address space goes; interval subscribers only.
    Release,
    /// Pages move to or from a device; the one that moves them ([`Range::owner`]) need not be told.
    Migrate,
    /// A device gets exclusive access; the one that gets it ([`Range::owner`]) need not be told.
    Exclusive,
}

/// Who has asked for a migration or for exclusive access: a number that means something to its drivers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner(pub usize);

/// Addresses whose translations are about to change (Linux `struct mmu_notifier_range`).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Range {
    start: usize,
    last: usize,
    event: Event,
    owner: Option<Owner>,
}

impl Range {
    /// The addresses from the first to the one before the last.
    ///
    /// # Errors
    /// If there is none: who asks for an empty range means something else, and some hardware takes it for all addresses.
    pub fn new(addrs: ops::Range<usize>, event: Event) -> Result<Range, EmptyRange> {
        let ops::Range { start, end } = addrs;
        if start < end {
            Ok(Range { start, last: end - 1, event, owner: None })
        } else {
            Err(EmptyRange { start, end })
        }
    }

    /// All addresses.
    pub(crate) fn all(event: Event) -> Range {
        Range { start: 0, last: usize::MAX, event, owner: None }
    }

    /// The same, asked for by somebody who need not be told.
    pub fn by(self, owner: Owner) -> Range {
        Range { owner: Some(owner), ..self }
    }

    /// The first address.
    pub fn start(&self) -> usize {
        self.start
    }

    /// The address behind the last one; of all addresses it is the greatest number, as in Linux.
    pub fn end(&self) -> usize {
        self.last.saturating_add(1)
    }

    /// The last address.
    pub fn last(&self) -> usize {
        self.last
    }

    /// Why.
    pub fn event(&self) -> Event {
        self.event
    }

    /// Who has asked for it, if the event has an owner.
    pub fn owner(&self) -> Option<Owner> {
        self.owner
    }
}

/// A range without addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EmptyRange {
    start: usize,
    end: usize,
}

impl fmt::Display for EmptyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no addresses from {:#x} to {:#x}", self.start, self.end)
    }
}

impl core::error::Error for EmptyRange {}

/// An invalidation, as a subscriber is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Invalidation<'a> {
    range: &'a Range,
    blockable: bool,
}

impl<'a> Invalidation<'a> {
    pub(crate) fn new(range: &'a Range, blockable: bool) -> Self {
        Invalidation { range, blockable }
    }

    /// Of what.
    pub fn range(&self) -> &'a Range {
        self.range
    }

    /// Whether the callback may sleep. If not it must not wait for anything that may take long, not even where no lock forbids it: the
    /// caller may be what others wait for to get memory.
    pub fn is_blockable(&self) -> bool {
        self.blockable
    }
}

/// An invalidation was refused: somebody would have had to sleep, and the caller must not. Nothing may be changed, and there is nothing to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WouldBlock;

impl fmt::Display for WouldBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a subscriber would have to sleep to invalidate, and the caller must not")
    }
}

impl core::error::Error for WouldBlock {}
