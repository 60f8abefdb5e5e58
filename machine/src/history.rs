//! Histories: the state of a task is known by what it has seen, so what it forgets keeps searches small.
//!
//! A task's local state is a function of all that its steps have given it since it last said that it begins anew
//! ([`Machine::checkpoint`]). What it says it has forgotten and has not makes a search take one state for another, which
//! [`Reduction::Named`](crate::Reduction::Named) looks for.

use core::hash::{Hash, Hasher};

use crate::arena::Arena;
use crate::machine::Machine;
use crate::mix::fold;
use crate::state::Next;
use crate::step::sort;
use crate::symmetry::Order;
use crate::times::Times;

/// What a task has seen: a hash, and the things that it has come upon. In the hash they are called by the order in which
/// that was, in the list by number, half a byte each.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct History {
    hash: u64,
    things: u64,
    /// The present when the last time was seen, plus one; 0 if none was.
    present: u64,
}

impl History {
    pub(crate) fn new(hash: u64) -> History {
        History { hash, things: 0, present: 0 }
    }

    /// A step of this sort, with what came of it.
    #[inline]
    pub(crate) fn see(&mut self, sort: u64, value: u64) {
        self.hash = fold(fold(self.hash, sort), value);
    }

    /// The same of a step on a word.
    #[inline]
    pub(crate) fn see_word(&mut self, sort: u64, word: usize, value: u64, arena: &Arena) {
        let names = arena.names();
        let (thing, like) = names.word(word);
        let sort = (sort + like * sort::KINDS) ^ self.call(thing) << 56;
        if let Some(times) = arena.times_if(word) {
            self.see(sort, times.distance(arena, word, value));
            return self.see_the_time(times, arena);
        }
        if names.is_empty() {
            return self.see(sort, arena.portable(value));
        }
        if names.is_mask(word) {
            // How many there are of each sort: no more can be said without names.
            let (low, high) = ((value as u32).count_ones(), (value >> 32).count_ones());
            return self.see(sort, u64::from(low) | u64::from(high) << 32);
        }
        let (pointed, portable) = arena.named(value);
        let called = self.call(pointed);
        self.see(sort, portable ^ called << 56);
    }

    /// What was seen is known by how far it was from the present, which moves on.
    fn see_the_time(&mut self, times: &Times, arena: &Arena) {
        if self.present != 0 {
            self.hash = fold(self.hash, times.moved(arena, self.present - 1));
        }
        self.present = times.now(arena) + 1;
    }

    /// Something that the program says it remembers.
    pub(crate) fn see_value(&mut self, value: u64, arena: &Arena) {
        let (thing, portable) = arena.named(value);
        let called = self.call(thing);
        self.see(sort::VALUE, portable ^ called << 56);
    }

    /// What the task calls a thing: 0 for none.
    fn call(&mut self, thing: u8) -> u64 {
        if thing == 0 {
            return 0;
        }
        let mut shift = 0;
        loop {
            match self.things >> shift & 15 {
                0 => self.things |= u64::from(thing) << shift,
                known if known == u64::from(thing) => {}
                _ => {
                    shift += 4;
                    continue;
                }
            }
            return 1 + shift / 4;
        }
    }

    /// The hash without names.
    pub(crate) fn nameless(self) -> u64 {
        self.hash
    }

    /// The hash with these names, now.
    #[inline]
    pub(crate) fn named(self, arena: &Arena, order: &Order) -> u64 {
        let hash = match arena.times() {
            Some(times) if self.present != 0 => fold(self.hash, times.moved(arena, self.present - 1)),
            _ => self.hash,
        };
        if self.things == 0 {
            return hash;
        }
        let mut list = 0;
        let mut rest = self.things;
        let mut shift = 0;
        while rest != 0 {
            list |= order.of((rest & 15) as u8) << shift;
            rest >>= 4;
            shift += 4;
        }
        fold(hash, list)
    }
}

/// Hashes an outcome into a history, in which addresses are the things that they are in.
struct Told<'a> {
    history: History,
    arena: &'a Arena,
}

impl Hasher for Told<'_> {
    fn finish(&self) -> u64 {
        self.history.hash
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.history.see(sort::VALUE, byte.into()));
    }

    fn write_usize(&mut self, value: usize) {
        self.history.see_value(value as u64, self.arena);
    }
}

impl Machine {
    /// Begins a statement: all local state of the running task is a function of `local`. `loops` says that an earlier
    /// statement is come back to; others may go first then.
    pub fn checkpoint(&self, local: u64, loops: bool) {
        self.checkpoint_of(local, &[]);
        if loops {
            self.point(Next::Checkpoint);
            // Every step changes the key, else the state behind it looks seen and is not gone on from.
            self.state.borrow_mut().observe(sort::CHECKPOINT, 0);
        }
    }

    /// As [`checkpoint`](Self::checkpoint), not in a loop, where local state is a function of these addresses, too.
    pub fn checkpoint_of(&self, local: u64, addresses: &[usize]) {
        let mut state = self.state.borrow_mut();
        let task = state.current();
        task.history = History::new(fold(sort::CHECKPOINT, local));
        for &address in addresses {
            task.history.see_value(address as u64, &self.arena);
        }
        task.statement = task.history;
    }

    /// Part of a statement is over: all local state of the running task is a function of what it was at the last checkpoint,
    /// and of `part`.
    pub fn checkpoint_again(&self, part: u64) {
        let mut state = self.state.borrow_mut();
        let task = state.current();
        task.history = task.statement;
        task.history.see(sort::CHECKPOINT, part);
    }

    /// A question begins. All that the running task has seen before it.
    pub(crate) fn ask(&self) -> History {
        let mut state = self.state.borrow_mut();
        let before = state.current().history;
        // The outcome of the first question in this one must not look like that of this one.
        state.observe(sort::QUESTION, 0);
        before
    }

    /// The question is answered: of all that was seen since it began the outcome is left.
    pub(crate) fn answer(&self, before: History, outcome: &impl Hash) {
        let mut state = self.state.borrow_mut();
        let mut told = Told { history: before, arena: &self.arena };
        if state.hashing {
            told.history.see(sort::OUTCOME, 0);
            outcome.hash(&mut told);
        }
        state.current().history = told.history;
    }
}
