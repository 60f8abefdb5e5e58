//! Shadow bytes: the encoding of KASAN's generic mode, and what a byte says about an access.
//!
//! One byte for 8 bytes of memory: 0 if all may be accessed, 1 to 7 if only so many of the first bytes may, and a value
//! with the top bit set if none may, which then says why (`mm/kasan/kasan.h`).

use core::fmt;

/// How many bytes of memory one shadow byte describes.
pub const GRANULE: usize = 8;

/// Memory that belongs to no object.
pub(crate) const REDZONE: u8 = 0xfc;
/// A freed object.
pub(crate) const FREED: u8 = 0xfb;
/// The first granule of a freed object, whose free track is known.
pub(crate) const FREED_WITH_TRACK: u8 = 0xfa;

/// An address in the window, as it is printed: a kernel address that is the same in every run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub u64);

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which way an access goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or a read-modify-write.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Read => "Read",
            Access::Write => "Write",
        })
    }
}

/// What kind of bug an address gives away; the kernel's titles.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BugType {
    /// The object was freed.
    UseAfterFree,
    /// Beside an object.
    OutOfBounds,
    /// Below the first page.
    NullPtrDeref,
    /// A user address.
    UserMemoryAccess,
    /// Nowhere.
    WildMemoryAccess,
}

impl fmt::Display for BugType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BugType::UseAfterFree => "slab-use-after-free",
            BugType::OutOfBounds => "slab-out-of-bounds",
            BugType::NullPtrDeref => "null-ptr-deref",
            BugType::UserMemoryAccess => "user-memory-access",
            BugType::WildMemoryAccess => "wild-memory-access",
        })
    }
}

/// An access that must not be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadAccess {
    /// The first bad byte.
    pub addr: Addr,
    /// The size of the access in bytes.
    pub size: usize,
    /// Read or write.
    pub access: Access,
    /// What it is.
    pub bug: BugType,
}

/// Where no window lies: the kernel tells these apart by address alone.
pub(crate) fn bug_outside(addr: Addr) -> BugType {
    const PAGE_SIZE: u64 = 4096;
    const TASK_SIZE: u64 = 0x0000_8000_0000_0000;
    match addr.0 {
        0..PAGE_SIZE => BugType::NullPtrDeref,
        PAGE_SIZE..TASK_SIZE => BugType::UserMemoryAccess,
        _ => BugType::WildMemoryAccess,
    }
}

/// The index of the first byte of `bytes` that the shadow forbids; `first` is the offset into the first granule.
pub(crate) fn first_bad(shadow: &[u8], first: usize, size: usize) -> Option<usize> {
    (0..size).find(|byte| {
        let at = first + byte;
        match shadow[at / GRANULE] {
            0 => false,
            partial @ 1..8 => at % GRANULE >= usize::from(partial),
            _ => true,
        }
    })
}

/// What the shadow at a bad byte says. A partial granule says nothing by itself: its neighbour does.
pub(crate) fn bug_in(shadow: &[u8], granule: usize) -> BugType {
    let value = match shadow[granule] {
        0..8 => shadow.get(granule + 1).copied().unwrap_or(REDZONE),
        value => value,
    };
    match value {
        FREED | FREED_WITH_TRACK => BugType::UseAfterFree,
        _ => BugType::OutOfBounds,
    }
}
