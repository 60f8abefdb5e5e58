//! Epochs: a walk says when it began.

use core::fmt;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, Labelled, Ordering::*};

use super::{ChainId, SCAN, Slots, TAKEN, Walks};
use crate::kernel::NotifierKernel;

/// The epoch goes on.
const ADVANCE: Label = Label::new("notifier.advance");

/// `N` walks at a time with a word of their own; more share one count, for which everybody waits.
///
/// A word has the epoch in which its walk began, or an older one; who waits counts the epoch up and waits for walks of older ones. It need not
/// tell chains apart, and cannot.
///
/// Source: Fraser's epochs (2004), without what they defer; as `EpochPinned` in `lazytlb-epoch`.
pub struct Epochs<K: NotifierKernel, const N: usize> {
    /// The lowest bit is free for [`TAKEN`].
    epoch: K::AtomicUsize,
    slots: Slots<K, N>,
}

impl<K: NotifierKernel, const N: usize> Default for Epochs<K, N> {
    fn default() -> Self {
        Epochs { epoch: AtomicWord::new(0), slots: Slots::new() }
    }
}

impl<K: NotifierKernel, const N: usize> fmt::Debug for Epochs<K, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}, {N} words for walks", self.epoch.load(Relaxed) / 2)
    }
}

// SAFETY: a walk writes an epoch with a full barrier before it reads the list, and the caller has unlinked before the epoch is counted up, which is
// a full barrier, too. So a walk that can find what was unlinked has written an epoch of before, and the scan finds it.
unsafe impl<K: NotifierKernel, const N: usize> Walks<K> for Epochs<K, N> {
    type Walk = Option<usize>;

    fn begin(&self, kernel: K, _: ChainId) -> Self::Walk {
        self.slots.take(kernel.walk_hint(), |_| self.epoch.load(Relaxed))
    }

    fn end(&self, _: K, _: ChainId, walk: Self::Walk) {
        self.slots.give(walk, |_| 0);
    }

    fn synchronize(&self, kernel: K, _: ChainId) {
        let now = self.epoch.fetch_add_full(2, ADVANCE).wrapping_add(2);
        kernel.fence(SeqCst.at(SCAN));
        // An epoch is older if it lies in the half of all numbers that comes before.
        self.slots.wait(kernel, |word| now.wrapping_sub(word & !TAKEN).wrapping_sub(1) < usize::MAX / 2);
        kernel.fence(SeqCst);
    }
}
