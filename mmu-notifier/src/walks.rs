//! Walks: what keeps subscribers in place while somebody goes through the list of them, callbacks that sleep included.
//!
//! | scheme | a walk costs | who unsubscribes waits for |
//! | --- | --- | --- |
//! | [`Srcu`] | two full barriers | all walks of all chains that have begun; Linux's |
//! | [`Epochs`] | one full barrier | the same |
//! | [`Hazards`] | one full barrier | walks of the same chain |

mod epochs;
mod hazards;
mod srcu;

pub use epochs::Epochs;
pub use hazards::Hazards;
pub use srcu::Srcu;

use core::num::NonZero;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, Memory, Ordering::*};

use crate::kernel::NotifierKernel;

/// A chain, to schemes that tell chains apart: a number that no other has, with the lowest six bits zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChainId(pub(crate) NonZero<usize>);

/// A scheme.
///
/// # Safety
/// What was unlinked before [`synchronize`](Self::synchronize) is not in use when it returns: it waits for each walk of the chain that may
/// have seen it.
pub unsafe trait Walks<K: NotifierKernel> {
    /// A walk that goes on.
    type Walk;

    /// A walk begins: what is reached of the chain from here on stays. Ordering: a full barrier, so that the scheme sees the walk
    /// if the walk has not seen what was unlinked. Context: any that callbacks allow; it may migrate.
    fn begin(&self, kernel: K, chain: ChainId) -> Self::Walk;

    /// It ends. Ordering: release; what the walk did is behind it for who waits.
    fn end(&self, kernel: K, chain: ChainId, walk: Self::Walk);

    /// Waits for all walks of the chain that have begun. Ordering: a full barrier before and after. Context: may sleep, not in a walk.
    fn synchronize(&self, kernel: K, chain: ChainId);
}

/// A walk is announced, before the list is read.
pub const ANNOUNCE: Label = Label::new("notifier.announce");
/// Somebody has been unlinked, before the walks are looked at.
pub const SCAN: Label = Label::new("notifier.scan");

/// `N` words, each for one walk at a time, and a count of those walks that have found none.
///
/// Most walks find the word of their CPU free, which nobody else uses, so walks of different CPUs share no line. The numbers are hints: a walk
/// that migrates gives its word back from elsewhere.
pub(crate) struct Slots<M: Memory, const N: usize> {
    slots: [Line<M::AtomicUsize>; N],
    /// The walks without a word.
    rest: Line<M::AtomicUsize>,
}

/// A word on a line of its own.
#[repr(align(64))]
struct Line<T>(T);

/// The lowest bit of a word that is taken.
const TAKEN: usize = 1;

impl<M: Memory, const N: usize> Slots<M, N> {
    pub(crate) fn new() -> Self {
        Slots { slots: core::array::from_fn(|_| Line(AtomicWord::new(0))), rest: Line(AtomicWord::new(0)) }
    }

    /// Takes a word for a walk, first that of the hint, and writes `name` and what the word is counted by into it. A full barrier.
    pub(crate) fn take(&self, hint: usize, name: impl Fn(usize) -> usize) -> Option<usize> {
        for offset in 0..N {
            let slot = (hint + offset) % N;
            let word = &self.slots[slot].0;
            let free = word.load(Relaxed);
            if free & TAKEN == 0 && word.compare_exchange_full(free, name(free) | TAKEN, ANNOUNCE).is_ok() {
                return Some(slot);
            }
        }
        self.rest.0.fetch_add_full(1, ANNOUNCE);
        None
    }

    /// Gives it back: `free` is what the word holds then, made of what it holds now.
    pub(crate) fn give(&self, slot: Option<usize>, free: impl Fn(usize) -> usize) {
        match slot {
            // Nobody else writes a word that is taken.
            Some(slot) => {
                let word = &self.slots[slot].0;
                word.store(free(word.load(Relaxed)) & !TAKEN, Release);
            }
            None => {
                self.rest.0.fetch_sub(1, Release);
            }
        }
    }

    /// Waits until no word holds what it holds now, of those that are to be waited for; and until no walk is without a word, those included that begin
    /// meanwhile: where there are always more walks than words, it waits for ever. As many words as CPUs are enough but for walks that sleep.
    pub(crate) fn wait<K: NotifierKernel>(&self, kernel: K, is_to_wait: impl Fn(usize) -> bool) {
        for Line(word) in &self.slots {
            let seen = word.load(Acquire);
            if seen & TAKEN != 0 && is_to_wait(seen) {
                kernel.wait_for_walks(|| (word.load(Acquire) != seen).then_some(()));
            }
        }
        kernel.wait_for_walks(|| (self.rest.0.load(Acquire) == 0).then_some(()));
    }
}
