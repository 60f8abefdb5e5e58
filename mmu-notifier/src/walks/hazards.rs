//! Hazard pointers, to chains and not to subscribers: a walk says which chain it goes through.

use core::fmt;

use lazytlb_core::memory::Labelled;
use lazytlb_core::memory::Ordering::*;

use super::{ChainId, SCAN, Slots, Walks};
use crate::kernel::NotifierKernel;

/// `N` walks at a time with a word of their own; more share one count, for which everybody waits.
///
/// What is protected is the whole chain: a subscriber that was unlinked is still a way to the others for who stands on it, and a walk that
/// began anew would call somebody twice. Who unsubscribes from one mm does not wait for another's callbacks; with [`Srcu`](super::Srcu),
/// as in Linux, the slowest callback anywhere is waited for.
///
/// Source: Michael's hazard pointers (2004), with a list in the place of a node; ours.
pub struct Hazards<K: NotifierKernel, const N: usize>(Slots<K, N>);

impl<K: NotifierKernel, const N: usize> Default for Hazards<K, N> {
    fn default() -> Self {
        Hazards(Slots::new())
    }
}

impl<K: NotifierKernel, const N: usize> fmt::Debug for Hazards<K, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{N} words for walks")
    }
}

/// The bits of a word that count how often it was taken, so that two walks of one chain are told apart. Behind 32 walks they look alike,
/// and who waits then waits for one more.
const TURNS: usize = 0b11_1110;
const ONE_TURN: usize = 0b10;

// SAFETY: a walk writes the chain's name with a full barrier before it reads the list, and the caller has unlinked before the fence: so
// either the walk does not find what was unlinked, or the scan finds the walk. It waits until the word has changed, which the walk's end does.
unsafe impl<K: NotifierKernel, const N: usize> Walks<K> for Hazards<K, N> {
    type Walk = Option<usize>;

    fn begin(&self, kernel: K, chain: ChainId) -> Self::Walk {
        self.0.take(kernel.walk_hint(), |free| chain.0.get() | free.wrapping_add(ONE_TURN) & TURNS)
    }

    fn end(&self, _: K, _: ChainId, walk: Self::Walk) {
        self.0.give(walk, |taken| taken & TURNS);
    }

    fn synchronize(&self, kernel: K, chain: ChainId) {
        kernel.fence(SeqCst.at(SCAN));
        self.0.wait(kernel, |word| word & !(TURNS | super::TAKEN) == chain.0.get());
        kernel.fence(SeqCst);
    }
}
