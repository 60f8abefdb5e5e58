//! The simulated memory: one allocation, in which the simulated program's own structures lie.
//!
//! A word is known by its address, so a structure has the layout that it has natively, cache lines included. What the
//! program changes is written down the first time after each mark, so that going back to the mark costs only that.
//! The hash of the memory changes with every word that changes; pointers into the arena are hashed as offsets, so it is
//! the same in every process.

use core::alloc::Layout;
use core::cell::{Cell, OnceCell, RefCell};
use core::ptr::NonNull;
use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error};

use crate::mix::{fold, term};
use crate::symmetry::{Names, Order, pair};
use crate::times::Times;

pub(crate) const WORD: usize = size_of::<u64>();

/// The contents at some moment of an execution, to go back to.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    journalled: usize,
    sums: Vec<u64>,
}

/// Things have numbers of so many bits.
const SHIFT: usize = 4;
const MOST_SUMS: usize = 1 << (2 * SHIFT);

/// What an object holds, as far as the hash goes, if it is allocated.
const LIVE: u64 = 0x6c69_7665;

/// Nothing is alike.
static NOTHING: Names = Names::NOTHING;

/// Rows of a KASAN report, and more than any cache line.
const ALIGN: usize = 128;

#[derive(Debug)]
pub(crate) struct Arena {
    base: NonNull<u64>,
    words: usize,
    /// The hash: for each pair of like things, a sum over the words of the one that point into the other. Without such
    /// things a single sum.
    sums: Box<[Cell<u64>; MOST_SUMS]>,
    names: OnceCell<Names>,
    times: OnceCell<Times>,
    /// What words held before they were changed, in the order in which that happened.
    journal: RefCell<Vec<(usize, u64)>>,
    /// The mark after which each word was journalled last.
    journalled: Vec<Cell<u32>>,
    /// How many marks there were.
    marks: Cell<u32>,
    /// What each execution starts from.
    start: RefCell<Box<[u64]>>,
    /// Whether the hash is kept.
    hashing: Cell<bool>,
}

impl Arena {
    pub(crate) fn new(bytes: usize) -> Arena {
        let layout = Self::layout(bytes);
        // SAFETY: the layout is not of size zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base.cast()) else { handle_alloc_error(layout) };
        let words = layout.size() / WORD;
        Arena {
            base,
            words,
            sums: Box::new([const { Cell::new(0) }; MOST_SUMS]),
            names: OnceCell::new(),
            times: OnceCell::new(),
            journal: RefCell::default(),
            journalled: vec![Cell::new(0); words],
            marks: Cell::new(1),
            start: RefCell::default(),
            hashing: Cell::new(true),
        }
    }

    fn layout(bytes: usize) -> Layout {
        let size = bytes.max(ALIGN).next_multiple_of(ALIGN);
        Layout::from_size_align(size, ALIGN).expect("an arena is smaller than the address space")
    }

    pub(crate) fn len(&self) -> usize {
        self.words * WORD
    }

    /// A pointer to the byte at `offset`.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.len(), "offset {offset} is outside the arena");
        // SAFETY: the offset is inside the allocation.
        unsafe { self.base.cast().add(offset) }
    }

    /// The word at this host address, if it is in the arena.
    #[inline]
    pub(crate) fn index(&self, address: usize) -> Option<usize> {
        let offset = address.wrapping_sub(self.base.addr().get());
        (offset < self.words * WORD).then_some(offset / WORD)
    }

    #[inline]
    fn word(&self, index: usize) -> &Cell<u64> {
        assert!(index < self.words, "word {index} is outside the arena");
        // SAFETY: the word is in the allocation.
        let word = unsafe { self.base.add(index) };
        // SAFETY: the allocation lives as long as self; words are only ever accessed as cells, by this thread.
        unsafe { word.cast().as_ref() }
    }

    #[inline]
    pub(crate) fn read(&self, index: usize) -> u64 {
        self.word(index).get()
    }

    /// Writes a word; says whether that changed it.
    #[inline]
    pub(crate) fn write(&self, index: usize, value: u64) -> bool {
        let old = self.word(index).replace(value);
        if old == value {
            return false;
        }
        let mark = self.marks.get();
        if self.journalled[index].replace(mark) != mark {
            self.journal.borrow_mut().push((index, old));
        }
        if !self.hashing.get() || self.times_if(index).is_some() {
            return true;
        }
        if self.names().is_empty() {
            let id = index as u64;
            let sum = &self.sums[0];
            sum.set(sum.get() ^ term(id, self.portable(old)) ^ term(id, self.portable(value)));
        } else {
            self.add(index, old);
            self.add(index, value);
        }
        true
    }

    /// Adds what a word holds to the hash, or takes it out again.
    fn add(&self, index: usize, value: u64) {
        let names = self.names();
        let (of, like) = names.word(index);
        if names.is_mask(index) {
            for (task, bits) in names.in_mask(value).filter(|&(_, bits)| bits != 0) {
                self.add_term(0, task, term(like, bits));
            }
        } else {
            let (pointed, portable) = self.named(value);
            self.add_term(of, pointed, term(like, portable));
        }
    }

    fn add_term(&self, of: u8, pointed: u8, term: u64) {
        let sum = &self.sums[usize::from(of) << SHIFT | usize::from(pointed)];
        sum.set(sum.get() ^ term);
    }

    /// An object was allocated or freed: a term of the hash where like things are, which know of no order among free
    /// objects. `word` is its first.
    pub(crate) fn toggle_live(&self, word: usize) {
        let (of, like) = self.names().word(word);
        self.add_term(of, 0, term(like, LIVE));
    }

    /// Says what is alike; not more than once.
    pub(crate) fn set_names(&self, names: Names) {
        assert!(self.names.set(names).is_ok(), "what is alike is said once");
    }

    #[inline]
    pub(crate) fn names(&self) -> &Names {
        self.names.get().unwrap_or(&NOTHING)
    }

    /// Says which words hold times; not more than once.
    pub(crate) fn set_times(&self, times: Times) {
        assert!(self.times.set(times).is_ok(), "which words hold times is said once");
    }

    /// The times, if there are any.
    #[inline]
    pub(crate) fn times(&self) -> Option<&Times> {
        self.times.get()
    }

    /// The same, if this word is one of them.
    #[inline]
    pub(crate) fn times_if(&self, word: usize) -> Option<&Times> {
        self.times().filter(|times| times.has(word))
    }

    /// The thing that a value points into, and the value as it would be for the first such thing.
    #[inline]
    pub(crate) fn named(&self, value: u64) -> (u8, u64) {
        let Some(offset) = self.offset(value) else { return (0, value) };
        let (thing, like) = self.names().word(offset / WORD);
        (thing, (like as usize * WORD + offset % WORD) as u64 | 1 << 63)
    }

    /// A pointer as a value.
    pub(crate) fn pointer(&self, offset: usize) -> u64 {
        self.at(offset).addr().get() as u64
    }

    /// A value without host addresses: the same in every process.
    #[inline]
    pub(crate) fn portable(&self, value: u64) -> u64 {
        let offset = value.wrapping_sub(self.base.addr().get() as u64);
        if offset < self.len() as u64 { offset | 1 << 63 } else { value }
    }

    /// The offset of a pointer into the arena.
    pub(crate) fn offset(&self, value: u64) -> Option<usize> {
        let offset = value.wrapping_sub(self.base.addr().get() as u64);
        (offset < self.len() as u64).then_some(offset as usize)
    }

    /// Says whether anybody will ask for the hash.
    pub(crate) fn set_hashing(&self, hashing: bool) {
        self.hashing.set(hashing);
    }

    /// The hash where things have these names.
    #[inline]
    pub(crate) fn hash(&self, order: &Order) -> u64 {
        let mut hash = self.sums[0].get() ^ self.times().map_or(0, |times| times.hash(self, order));
        let width = self.names().width();
        for of in 0..width {
            for pointed in usize::from(of == 0)..width {
                let sum = self.sums[of << SHIFT | pointed].get();
                if sum != 0 {
                    hash ^= pair(order, of, pointed, sum);
                }
            }
        }
        hash
    }

    /// A hash of what memory says of a thing and no other.
    pub(crate) fn sum_of(&self, thing: usize) -> u64 {
        let sum = |of: usize, pointed: usize| self.sums[of << SHIFT | pointed].get();
        fold(fold(sum(thing, 0), sum(0, thing)), sum(thing, thing))
    }

    /// What the word holds when an execution begins.
    pub(crate) fn read_at_start(&self, index: usize) -> u64 {
        self.start.borrow()[index]
    }

    /// Whether the word has ever changed.
    pub(crate) fn was_written(&self, index: usize) -> bool {
        self.journalled[index].get() != 0
    }

    /// Makes the contents now the start of every execution.
    pub(crate) fn seal(&self) {
        self.journal.borrow_mut().clear();
        *self.start.borrow_mut() = (0..self.words).map(|index| self.read(index)).collect();
        self.sums.iter().for_each(|sum| sum.set(0));
        self.next_mark();
    }

    /// Goes back to the start.
    pub(crate) fn reset(&self) {
        self.go_back(&Mark { journalled: 0, sums: vec![0; self.names().width().pow(2)] });
    }

    /// The contents now.
    pub(crate) fn mark(&self) -> Mark {
        self.next_mark();
        Mark { journalled: self.journal.borrow().len(), sums: self.sums_in_use().map(Cell::get).collect() }
    }

    /// Goes back to what the contents were when the mark was made, in this execution.
    pub(crate) fn go_back(&self, mark: &Mark) {
        for (index, value) in self.journal.borrow_mut().drain(mark.journalled..).rev() {
            self.word(index).set(value);
        }
        self.sums_in_use().zip(&mark.sums).for_each(|(sum, &then)| sum.set(then));
        self.next_mark();
    }

    fn sums_in_use(&self) -> impl Iterator<Item = &Cell<u64>> {
        let width = self.names().width();
        (0..width).flat_map(move |of| &self.sums[of << SHIFT..(of << SHIFT) + width])
    }

    /// Words hold again what they held when the execution began.
    pub(crate) fn undo(&self, words: core::ops::Range<usize>) {
        for index in words {
            let value = self.start.borrow()[index];
            self.write(index, value);
        }
    }

    fn next_mark(&self) {
        self.marks.set(self.marks.get().wrapping_add(1));
        if self.marks.get() == 0 {
            self.journalled.iter().for_each(|word| word.set(0));
            self.marks.set(1);
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the layout of this size.
        unsafe { dealloc(self.base.as_ptr().cast(), Self::layout(self.len())) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_undoes_and_the_hash_follows_the_contents() {
        let arena = Arena::new(1024);
        arena.write(3, 7);
        arena.seal();
        let start = arena.hash(&Order::AS_IT_IS);
        assert!(arena.write(0, 1));
        assert!(arena.write(1, 0) | arena.write(1, 2));
        let one_way = arena.hash(&Order::AS_IT_IS);
        arena.write(0, 5);
        arena.reset();
        assert_eq!((arena.read(0), arena.read(3), arena.hash(&Order::AS_IT_IS)), (0, 7, start));
        arena.write(1, 2);
        arena.write(0, 9);
        arena.write(0, 1);
        assert_eq!(arena.hash(&Order::AS_IT_IS), one_way, "the way does not matter");
        arena.write(0, 0);
        arena.write(1, 0);
        assert_eq!(arena.hash(&Order::AS_IT_IS), start);
    }

    #[test]
    fn marks_nest() {
        let arena = Arena::new(1024);
        arena.seal();
        arena.write(0, 1);
        let (outer, then) = (arena.mark(), arena.hash(&Order::AS_IT_IS));
        arena.write(0, 2);
        arena.write(1, 2);
        let inner = arena.mark();
        arena.write(0, 3);
        arena.write(0, 4);
        arena.go_back(&inner);
        assert_eq!((arena.read(0), arena.read(1)), (2, 2));
        arena.write(1, 9);
        arena.go_back(&inner);
        assert_eq!((arena.read(0), arena.read(1)), (2, 2), "as often as one likes");
        arena.go_back(&outer);
        assert_eq!((arena.read(0), arena.read(1), arena.hash(&Order::AS_IT_IS)), (1, 0, then));
        arena.reset();
        assert_eq!(arena.read(0), 0);
    }

    #[test]
    fn words_do_not_cancel_each_other() {
        let arena = Arena::new(1024);
        arena.seal();
        arena.write(0, 1);
        let first = arena.hash(&Order::AS_IT_IS);
        arena.reset();
        arena.write(1, 1);
        assert_ne!(arena.hash(&Order::AS_IT_IS), first);
        arena.write(1, 0);
        arena.write(0, 2);
        assert_ne!(arena.hash(&Order::AS_IT_IS), first);
    }

    #[test]
    fn pointers_are_hashed_as_offsets() {
        let hash = || {
            let arena = Arena::new(1024);
            arena.seal();
            let pointer = arena.at(256).addr().get() as u64;
            arena.write(5, pointer);
            arena.hash(&Order::AS_IT_IS)
        };
        let (first, kept) = (hash(), Arena::new(4096));
        assert_eq!(first, hash());
        drop(kept);
    }
}
