//! Times: states that differ only in when they are reached are one.
//!
//! An epoch grows, and a clock goes on; a search of a program that never ends would never end either. But nobody can tell
//! one epoch from another where they are only compared with each other. What is declared ([`Machine::counts_from`]) goes into
//! the keys of states as what lies between it and the present, and what lies so far back that it makes no difference any
//! more is all one.
//!
//! A task that has seen a time knows how far that was from the present, and its state changes as the present moves on: the
//! history has the former, and when that was.

use crate::arena::{Arena, WORD};
use crate::machine::{Machine, MemoryModel};
use crate::mix::term;
use crate::symmetry::Order;

/// How far times lie from the present where that makes a difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reach {
    /// None is further ahead.
    pub ahead: usize,
    /// All that are as far behind as this, or further, are the same to everybody.
    pub behind: usize,
}

/// The words that hold times.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    /// The present.
    clock: usize,
    /// All others.
    words: Vec<usize>,
    reach: Reach,
}

/// Tells the distance of a time from a word that holds none.
const TIME: u64 = 1 << 62;

impl Times {
    pub(crate) fn has(&self, word: usize) -> bool {
        word == self.clock || self.words.contains(&word)
    }

    /// How far a value lies from the present, which moves on only: a number for it. 0 stands for no time at all in every
    /// word but the clock.
    pub(crate) fn distance(&self, arena: &Arena, word: usize, value: u64) -> u64 {
        if value == 0 && word != self.clock {
            return 0;
        }
        let ahead = value.wrapping_sub(self.now(arena)).cast_signed();
        TIME ^ ahead.max(-(self.reach.behind as i64)).cast_unsigned()
    }

    pub(crate) fn now(&self, arena: &Arena) -> u64 {
        arena.read(self.clock)
    }

    /// How far the present has moved on, as far as it makes a difference: by then all that was ahead of it is far behind.
    pub(crate) fn moved(&self, arena: &Arena, since: u64) -> u64 {
        self.now(arena).wrapping_sub(since).min((self.reach.ahead + self.reach.behind) as u64)
    }

    /// A hash of them all, where things have these names.
    pub(crate) fn hash(&self, arena: &Arena, order: &Order) -> u64 {
        let one = |&word: &usize| term(order.word(arena, word), self.distance(arena, word, arena.read(word)));
        self.words.iter().map(one).fold(0, |sum, term| sum ^ term)
    }
}

impl Machine {
    /// Declares that the words at `addresses` hold times, which are only compared with each other and with what `clock`
    /// holds: a search takes states for one that differ only in what time it is, and in times beyond `reach`. 0 is no time,
    /// but in the clock. Once, before the first execution, not under [`MemoryModel::Weak`].
    ///
    /// # Panics
    /// If a word is none of this machine's.
    pub fn counts_from(&self, clock: usize, addresses: &[usize], reach: Reach) {
        assert!(!self.is_weak(), "{} keeps a history of each word", MemoryModel::Weak);
        let index = |address: usize| self.arena.index(address).expect("a word of this machine");
        let words = addresses.iter().map(|&address| index(address)).collect();
        debug_assert!(WORD == size_of::<usize>(), "a time is a word");
        self.arena.set_times(Times { clock: index(clock), words, reach });
    }
}
