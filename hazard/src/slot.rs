//! [`LazySlot`]: the word in which a CPU publishes the mm that it borrows.
//!
//! # Why publishing needs no fence
//!
//! A textbook hazard pointer is stored, fenced, and checked again, because the object may have died meanwhile. Here
//! the CPU that publishes owns a user, directly or through the task it leaves, and that user is put only afterwards:
//! publish, then (program order, or the release of `on_cpu` and the wake-up's acquire) the `users` RMW that reaches
//! zero, then the scan. The scan follows the last put, a full barrier ([`MMPUT`](lazytlb_core::mm::MMPUT)), and
//! happens after every publication. This is pair L1 (Lutomirski, patch 16/23 of January 2022).

use core::fmt;
use core::ptr::null_mut;

use lazytlb_core::memory::{AtomicWord, Label, Labelled, Ordering::*};
use lazytlb_core::mm::{MmCore, MmPtr, Slot};
use lazytlb_core::platform::Platform;

/// The store that publishes a borrow. Relaxed; see "Why publishing needs no fence".
pub const PUBLISH: Label = Label::new("hazard.publish");
/// The store that takes it back, after the MMU has left the mm. Release, so that whoever sees the slot empty sees the
/// MMU gone (pair L2 with [`SCAN`]).
pub const UNPUBLISH: Label = Label::new("hazard.unpublish");
/// The reclaimer's look at a slot. Acquire.
pub const SCAN: Label = Label::new("hazard.scan");

/// What a CPU borrows, for all to see. Written by its own CPU alone, with interrupts off.
pub struct LazySlot<P: Platform> {
    lazy_mm: P::AtomicPtr<MmCore<P>>,
}

impl<P: Platform> LazySlot<P> {
    /// An empty slot from a ready word, null; `const`, for statics.
    pub const fn from_parts(lazy_mm: P::AtomicPtr<MmCore<P>>) -> Self {
        LazySlot { lazy_mm }
    }

    /// The borrow of `mm` is published. Ordering: none; the caller owns a user.
    #[inline]
    pub fn publish(&self, mm: *mut MmCore<P>) {
        self.lazy_mm.store(mm, Relaxed.at(PUBLISH));
    }

    /// The borrow is taken back, after the MMU has left the mm. Release.
    #[inline]
    pub fn unpublish(&self) {
        self.lazy_mm.store(null_mut(), Release.at(UNPUBLISH));
    }

    /// A reclaimer's look at what is published. Acquire: where it is another mm than the reclaimer's, or none, the MMU
    /// has left the reclaimer's.
    #[inline]
    pub fn scan(&self) -> *mut MmCore<P> {
        self.lazy_mm.load(Acquire.at(SCAN))
    }

    /// The own CPU's look at its slot, and that of those who watch the machine from outside.
    #[inline]
    pub fn lazy_mm(&self) -> Option<MmPtr<P>> {
        MmPtr::new(self.lazy_mm.load(Relaxed))
    }
}

impl<P: Platform> Slot for LazySlot<P> {
    fn new() -> Self {
        LazySlot { lazy_mm: AtomicWord::new(null_mut()) }
    }

    fn reinit(&self) {
        self.lazy_mm.store(null_mut(), Relaxed);
    }
}

impl<P: Platform> fmt::Debug for LazySlot<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LazySlot").field(&self.lazy_mm()).finish()
    }
}
