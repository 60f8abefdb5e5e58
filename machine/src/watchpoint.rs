//! Watchpoints: a model is told of each step that touches a word it watches, as part of that step.
//!
//! So a model can check what it promises after every step at which the answer can change, and ask nothing after the
//! others. What the check reads decides what the reduction must know of it:
//!
//! * only what the running CPU alone writes ([`Machine::as_this_cpu_sees`]): nothing. Steps of others cannot change the
//!   answer, so whether they come before or after makes no difference;
//! * what others write, and the step under way is a choice point already for those writes: [`Machine::inspect`];
//! * what others write otherwise: [`Machine::look_step`], a load of its own, before which they can go.
//!
//! A check that reads more by [`Machine::quietly`] never says anything wrong: what it sees is a state of an execution that is
//! explored. It may miss something, and has to say why it does not.

use core::cell::{Cell, RefCell};

use crate::machine::{Hook, Machine, set_once};

/// What a model is told. `tag` is what it called the word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// The running place has loaded a word.
    Loaded {
        /// The word.
        tag: u16,
    },
    /// The running place has stored into a word, by a store or a read-modify-write. Under TSO the store may be in its buffer
    /// still, so the value before is the one that the running place itself would have read.
    Stored {
        /// The word.
        tag: u16,
        /// What it held.
        before: u64,
        /// What it holds.
        after: u64,
    },
    /// The running CPU takes interrupts again.
    InterruptsOn,
}

/// Loads are told too.
const LOADS: u16 = 1 << 15;

/// Who is told.
type Told = dyn Fn(&Machine, Seen);

/// The words that are watched.
pub(crate) struct Watchpoints {
    /// For each word, one more than its tag; 0 if it is not watched.
    tags: Box<[Cell<u16>]>,
    told: Hook<Told>,
}

thread_local! {
    /// The addresses that a look at set-up has read, while somebody asks for them.
    static LOOK: RefCell<Option<Vec<usize>>> = const { RefCell::new(None) };
}

/// A word is read where no execution runs.
pub(crate) fn note_look(address: usize) {
    LOOK.with_borrow_mut(|look| {
        if let Some(look) = look {
            look.push(address);
        }
    });
}

impl Watchpoints {
    pub(crate) fn new(words: usize) -> Watchpoints {
        Watchpoints { tags: (0..words).map(|_| Cell::new(0)).collect(), told: Hook::new() }
    }
}

impl Machine {
    /// Watches the words that `look` reads, under a tag below 2^15 - 1. Outside of executions.
    ///
    /// # Panics
    /// If a word is watched already, or is none of this machine's.
    pub fn watch_stores<T>(&self, tag: u16, look: impl FnOnce() -> T) {
        self.watch_words(tag + 1, look);
    }

    /// As [`watch_stores`](Self::watch_stores), and loads are told too.
    ///
    /// # Panics
    /// Likewise.
    pub fn watch_accesses<T>(&self, tag: u16, look: impl FnOnce() -> T) {
        self.watch_words((tag + 1) | LOADS, look);
    }

    /// The addresses of the words that `look` reads, in their order. Outside of executions.
    pub fn words_read<T>(look: impl FnOnce() -> T) -> Vec<usize> {
        LOOK.set(Some(Vec::new()));
        look();
        LOOK.take().unwrap_or_default()
    }

    fn watch_words<T>(&self, mark: u16, look: impl FnOnce() -> T) {
        for address in Machine::words_read(look) {
            let word = self.arena.index(address).expect("a word of this machine");
            let before = self.watchpoints.tags[word].replace(mark);
            assert!(before == 0 || before == mark, "the word is watched already");
        }
    }

    /// Sets who is told. It runs as part of the step that it is told of, and must keep nothing on its stack that has to be
    /// dropped: a verdict ends the execution inside.
    pub fn on_seen(&self, told: impl Fn(&Machine, Seen) + 'static) {
        set_once(&self.watchpoints.told, Box::new(told));
    }

    #[inline]
    pub(crate) fn watched(&self, word: usize) -> bool {
        self.watchpoints.tags[word].get() != 0
    }

    /// What a watched word holds before the store that is under way.
    #[inline]
    pub(crate) fn watched_before(&self, word: usize) -> Option<u64> {
        self.watched(word).then(|| self.own_view(word))
    }

    #[inline]
    pub(crate) fn tell_load(&self, word: usize) {
        let mark = self.watchpoints.tags[word].get();
        if mark & LOADS != 0 {
            self.tell(Seen::Loaded { tag: (mark & !LOADS) - 1 });
        }
    }

    /// `before` is none where the word is not watched.
    #[inline]
    pub(crate) fn tell_store(&self, word: usize, before: Option<u64>, after: u64) {
        if let Some(before) = before.filter(|&before| before != after) {
            let tag = (self.watchpoints.tags[word].get() & !LOADS) - 1;
            self.tell(Seen::Stored { tag, before, after });
        }
    }

    pub(crate) fn tell(&self, seen: Seen) {
        if let Some(told) = self.watchpoints.told.get() {
            told(self, seen);
        }
    }

    /// A load of its own of the word at an address, for a check that looks at what others write: they can go before it. The
    /// value is what is in memory.
    pub fn look_step(&self, address: usize) -> usize {
        let Some(word) = self.arena.index(address) else { return 0 };
        self.load_step(word);
        self.arena.read(word) as usize
    }
}
