//! Sleepable RCU: walks are counted, in two turns.

use core::fmt;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, Labelled, Ordering::*};

use super::{ANNOUNCE, ChainId, Line, SCAN, Walks};
use crate::kernel::NotifierKernel;

/// A walk ends.
const LEAVE: Label = Label::new("notifier.srcu-leave");
/// The turn goes over.
const FLIP: Label = Label::new("notifier.srcu-flip");

/// Two pairs of counters for each of `N` groups of CPUs.
///
/// A walk counts itself in under the turn that it finds, and out under the same. Who waits makes the other turn the current one and waits until as many
/// have left the old one as have entered it; before that it does the same for the turn that comes, in which somebody may still be.
///
/// Source: McKenney's SRCU as Linux has it (`kernel/rcu/srcutree.c`, its classic flavour): two full barriers a walk. What Linux counts in per-CPU
/// words is an RMW of a word here, since a walk may migrate between the read and the write.
pub struct Srcu<K: NotifierKernel, const N: usize> {
    turn: K::AtomicUsize,
    entered: [[Line<K::AtomicUsize>; N]; 2],
    left: [[Line<K::AtomicUsize>; N]; 2],
    /// 1 while somebody waits for walks: one at a time.
    waits: K::AtomicUsize,
}

impl<K: NotifierKernel, const N: usize> Default for Srcu<K, N> {
    fn default() -> Self {
        let word = || AtomicWord::new(0);
        let words = || core::array::from_fn(|_| core::array::from_fn(|_| Line(word())));
        Srcu { turn: word(), entered: words(), left: words(), waits: word() }
    }
}

impl<K: NotifierKernel, const N: usize> fmt::Debug for Srcu<K, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "turn {}", self.turn.load(Relaxed))
    }
}

impl<K: NotifierKernel, const N: usize> Srcu<K, N> {
    /// Whether everybody has left a turn. What has left is counted first: who leaves later has entered before.
    fn is_empty(&self, kernel: K, turn: usize) -> bool {
        let sum = |words: &[Line<K::AtomicUsize>; N]| {
            words.iter().fold(0usize, |sum, Line(word)| sum.wrapping_add(word.load(Acquire)))
        };
        let left = sum(&self.left[turn]);
        kernel.fence(SeqCst.at(SCAN));
        sum(&self.entered[turn]) == left
    }

    fn wait_for(&self, kernel: K, turn: usize) {
        kernel.wait_for_walks(|| self.is_empty(kernel, turn).then_some(()));
    }
}

// SAFETY: a walk that can have found what was unlinked has entered before the first fence of `synchronize` is over, under one of both turns; each is seen
// empty after that. A walk that reads the old turn and counts itself in after it was seen empty has a full barrier behind that, and finds the list as it is now.
unsafe impl<K: NotifierKernel, const N: usize> Walks<K> for Srcu<K, N> {
    type Walk = usize;

    fn begin(&self, kernel: K, _: ChainId) -> usize {
        let turn = self.turn.load(Relaxed) & 1;
        self.entered[turn][kernel.walk_hint() % N].0.fetch_add_full(1, ANNOUNCE);
        turn
    }

    fn end(&self, kernel: K, _: ChainId, turn: usize) {
        self.left[turn][kernel.walk_hint() % N].0.fetch_add_full(1, LEAVE);
    }

    fn synchronize(&self, kernel: K, _: ChainId) {
        kernel.wait_for_walks(|| self.waits.compare_exchange(0, 1, Acquire, Relaxed).ok());
        kernel.fence(SeqCst.at(FLIP));
        let turn = self.turn.load(Relaxed) & 1;
        self.wait_for(kernel, turn ^ 1);
        self.turn.fetch_add_full(1, FLIP);
        self.wait_for(kernel, turn);
        kernel.fence(SeqCst);
        self.waits.store(0, Release);
    }
}
