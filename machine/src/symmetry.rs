//! Symmetry: states that differ only in which of several like things is which are one.
//!
//! Tasks that do the same, objects from the same cache: a search that tells them apart explores every state once for each
//! way to name them. What is alike is declared ([`Machine::alike`]); it is told from its memory and its tasks, so a thing
//! is a set of words and perhaps a task. Everything that a state consists of is kept so that names can be given late:
//!
//! * the memory's hash is a sum for each pair of things, of the words of the one that point into the other, each word by
//!   where it lies in its thing;
//! * a task's history calls things by the order in which the task came upon them, and has a list of those.
//!
//! The key of a state is the smallest that any order of the like things gives (Ip and Dill, "Better verification through
//! symmetry", FMSD 1996). Only orders that sort the things by what is known of each without names are tried: where two
//! differ in that, everybody names them in the same order.
//!
//! What is learned about one thing ([`Summary`](crate::reduce::Summary)) is learned about all that are like it, with the
//! tasks renamed along.
//!
//! The program must not tell the things apart by number or address. That they have started alike is checked when a search ends;
//! tests compare with searches that tell them apart ([`Reduction::Named`]) and count what differs in more than names.

use core::cell::{Cell, RefCell};
use core::hash::BuildHasherDefault;
use core::ops::Range;
use std::collections::HashMap;

use crate::arena::{Arena, WORD};
use crate::machine::{Machine, TaskId};
use crate::mix::{fold, term};
use crate::policy::{AsIs, Key};
use crate::search::Reduction;
use crate::state::{Place, State};
use crate::step::sort;
use crate::word::SimWord;

/// One of several like things: memory, and perhaps the task that goes with it.
#[derive(Clone, Debug, Default)]
pub struct Thing {
    parts: Vec<Range<usize>>,
    task: Option<usize>,
}

impl Thing {
    /// With this structure in the arena as one of its parts. Like things have like parts in the same order.
    #[must_use]
    pub fn with<T>(mut self, part: *const T) -> Thing {
        self.parts.push(part.addr()..part.addr() + size_of::<T>());
        self
    }

    /// With this task.
    #[must_use]
    pub fn with_task(mut self, task: TaskId) -> Thing {
        self.task = Some(task.index());
        self
    }
}

/// Things have numbers from 1, which fit into half a byte.
const MOST: usize = 15;

/// The mark of a word that holds a mask of tasks.
const MASK: u8 = u8::MAX;

/// What is alike.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// The numbers of the things of each group.
    groups: Vec<Range<usize>>,
    /// Of each word, the thing that it is in, 0, or [`MASK`]. Empty if nothing is alike.
    things: Vec<u8>,
    /// Of each word, the same one in the first thing of the group.
    likes: Vec<u32>,
    /// Of each thing, its words, and its task.
    parts: Vec<Vec<Range<usize>>>,
    tasks: Vec<Option<usize>>,
}

impl Names {
    pub(crate) const NOTHING: Names =
        Names { groups: Vec::new(), things: Vec::new(), likes: Vec::new(), parts: Vec::new(), tasks: Vec::new() };

    /// Adds a thing to the group that begins with thing `first`.
    fn add(&mut self, first: usize, parts: Vec<Range<usize>>, task: Option<usize>) {
        let number = self.width();
        assert!(number <= MOST, "at most {MOST} like things");
        let model = self.parts.get(first - 1).unwrap_or(&parts).clone();
        assert_eq!(model.len(), parts.len(), "like things have like parts");
        for (words, likes) in parts.iter().zip(model) {
            for (word, like) in words.clone().zip(likes) {
                self.things[word] = number as u8;
                self.likes[word] = like as u32;
            }
        }
        self.parts.push(parts);
        self.tasks.push(task);
    }

    /// One more than the number of things.
    pub(crate) fn width(&self) -> usize {
        self.tasks.len() + 1
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.things.is_empty()
    }

    /// The thing that a word is in, and the same word of the first such thing.
    #[inline]
    pub(crate) fn word(&self, word: usize) -> (u8, u64) {
        match self.things.get(word) {
            Some(&thing) if thing != MASK => (thing, u64::from(self.likes[word])),
            _ => (0, word as u64),
        }
    }

    #[inline]
    pub(crate) fn is_mask(&self, word: usize) -> bool {
        self.things.get(word) == Some(&MASK)
    }

    /// The thing of a task, or 0.
    fn of_task(&self, task: usize) -> u8 {
        self.tasks.iter().position(|&other| other == Some(task)).map_or(0, |index| index as u8 + 1)
    }

    fn task(&self, thing: u8) -> Option<usize> {
        *self.tasks.get(usize::from(thing).wrapping_sub(1))?
    }

    /// What a mask says of each thing that is a task: the thing, and its two bits.
    pub(crate) fn in_mask(&self, mask: u64) -> impl Iterator<Item = (u8, u64)> + '_ {
        let tasks = self.tasks.iter().enumerate().filter_map(|(index, task)| Some((index as u8 + 1, (*task)?)));
        tasks.map(move |(thing, task)| (thing, mask >> task & 1 | (mask >> (task + 32) & 1) << 1))
    }

    /// The things that are like this one, itself among them; 0 is like nothing else.
    fn alike(&self, thing: u8) -> Range<usize> {
        let number = usize::from(thing);
        self.groups.iter().find(|group| group.contains(&number)).cloned().unwrap_or(number..number + 1)
    }

    /// The same word of another thing like its own.
    fn sibling(&self, word: usize, of: u8, thing: u8) -> usize {
        if of == thing {
            return word;
        }
        let (mine, others) = (&self.parts[usize::from(of) - 1], &self.parts[usize::from(thing) - 1]);
        let part = mine.iter().position(|part| part.contains(&word)).expect("it is in one of them");
        others[part].start + (word - mine[part].start)
    }

    /// The same word of all things like its own.
    pub(crate) fn siblings(&self, word: usize) -> Vec<usize> {
        self.like_accesses(word, 0).into_iter().map(|(word, _)| word).collect()
    }

    /// All that an access to a word by a task (a bit, or none) is like.
    pub(crate) fn like_accesses(&self, word: usize, task: u32) -> Vec<(usize, u32)> {
        let of = if self.is_mask(word) { 0 } else { self.things.get(word).copied().unwrap_or(0) };
        let by = if task == 0 { 0 } else { self.of_task(task.trailing_zeros() as usize) };
        let mut all = Vec::new();
        for thing in self.alike(of) {
            for who in self.alike(by) {
                let same_group = self.alike(of) == self.alike(by);
                if !same_group || (of == by) == (thing == who) {
                    let task = self.task(who as u8).map_or(task, |task| 1 << task);
                    all.push((self.sibling(word, of, thing as u8), task));
                }
            }
        }
        all
    }

    /// All renamings that are one exchange of neighbours: they make all others.
    fn exchanges(&self) -> impl Iterator<Item = Order> + '_ {
        let pairs = self.groups.iter().flat_map(|group| group.clone().skip(1));
        pairs.map(|second| {
            let mut order = Order::AS_IT_IS;
            order.0.swap(second, second - 1);
            order
        })
    }

    /// Where a word is when things are renamed, and what a value is called then.
    fn renamed(&self, arena: &Arena, order: &Order, word: usize, value: u64) -> (usize, u64) {
        let place = |word: usize| match self.word(word) {
            (0, _) => word,
            (thing, _) => self.sibling(word, thing, order.0[usize::from(thing)]),
        };
        if self.is_mask(word) {
            let renamed = self.in_mask(value).fold(0, |mask, (thing, bits)| {
                let task = self.task(order.0[usize::from(thing)]).expect("a task is like tasks");
                mask | (bits & 1) << task | (bits >> 1) << (task + 32)
            });
            return (word, renamed);
        }
        let pointed = arena.offset(value).map(|offset| arena.pointer(place(offset / WORD) * WORD + offset % WORD));
        (place(word), pointed.unwrap_or(value))
    }

    /// The first of these words that tells like things apart before anything has run.
    fn differs_at_start(&self, arena: &Arena, mut words: impl Iterator<Item = usize>) -> Option<usize> {
        words.find(|&word| {
            self.exchanges().any(|order| {
                let (renamed, value) = self.renamed(arena, &order, word, arena.read_at_start(word));
                arena.read_at_start(renamed) != value
            })
        })
    }

    /// How many ways there are to name all things.
    pub(crate) fn orders(&self) -> u64 {
        self.groups.iter().map(|group| (1..=group.len() as u64).product::<u64>()).product()
    }
}

/// States without names, each with what comes next in it.
type Seen = HashMap<u64, String, BuildHasherDefault<AsIs>>;

/// How a search uses what is alike.
#[derive(Debug, Default)]
pub(crate) struct Symmetry {
    /// Like things are taken for each other.
    folds: Cell<bool>,
    /// They are not, but states are counted as if they were; each with what all are about to do in it.
    seen: RefCell<Option<Seen>>,
}

/// What each thing is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order([u8; MOST + 1]);

impl Order {
    /// By its number.
    pub(crate) const AS_IT_IS: Order = {
        let mut order = [0; MOST + 1];
        let mut thing = 0;
        while thing <= MOST {
            order[thing] = thing as u8;
            thing += 1;
        }
        Order(order)
    };

    #[inline]
    pub(crate) fn of(&self, thing: u8) -> u64 {
        u64::from(self.0[usize::from(thing)])
    }

    /// A number for a word.
    #[inline]
    pub(crate) fn word(&self, arena: &Arena, word: usize) -> u64 {
        let (thing, like) = arena.names().word(word);
        like | self.of(thing) << 56
    }

    /// A number for what a word shall hold.
    #[inline]
    pub(crate) fn value(&self, arena: &Arena, word: usize, value: u64) -> u64 {
        if let Some(times) = arena.times_if(word) {
            return times.distance(arena, word, value);
        }
        let (thing, portable) = arena.named(value);
        portable ^ self.of(thing) << 56
    }

    /// A number for a task.
    #[inline]
    pub(crate) fn task(&self, names: &Names, task: usize) -> u64 {
        match if names.is_empty() { 0 } else { names.of_task(task) } {
            0 => task as u64,
            thing => self.of(thing) << 56,
        }
    }
}

impl Machine {
    /// Declares what is alike: a search takes states for one that differ only in which of the like things is which. Once,
    /// before the first execution, not under [`MemoryModel::Weak`](crate::MemoryModel::Weak), and only on a machine with
    /// [`Config::ticks`](crate::Config::ticks), where freed objects hold what they held at first.
    ///
    /// The program must do the same with each of them, and must not look at numbers or addresses but to find the thing;
    /// what it remembers over a checkpoint it says by [`checkpoint_of`](Self::checkpoint_of). In a word of `masks` bits `n`
    /// and `n + 32` are about task `n`; a task that is picked there is named in the checkpoint that follows.
    ///
    /// # Panics
    /// If there are more than 15 things, or those of a group have not as many parts. A search panics if they do not start
    /// alike.
    pub fn alike(&self, groups: &[Vec<Thing>], masks: &[&SimWord<usize>]) {
        assert!(self.config.ticks && !self.is_weak(), "free objects are told apart here by when they were freed");
        let index = |address: usize| self.arena.index(address).expect("a part of the arena");
        let words = self.arena.len() / WORD;
        let mut names = Names { things: vec![0; words], likes: (0..words as u32).collect(), ..Names::NOTHING };
        for group in groups {
            let first = names.width();
            for thing in group {
                let parts = thing.parts.iter().map(|part| index(part.start)..index(part.end - 1) + 1).collect();
                names.add(first, parts, thing.task);
            }
            names.groups.push(first..names.width());
        }
        for &word in masks {
            names.things[index(core::ptr::from_ref(word).addr())] = MASK;
        }
        self.arena.set_names(names);
    }

    /// After a search: whether what it took for alike had started so, as far as anybody has looked. What lies between the
    /// fields of a structure nobody has written.
    ///
    /// # Panics
    /// If it had not.
    pub(crate) fn check_that_like_things_started_alike(&self) {
        let names = self.arena.names();
        if names.is_empty() {
            return;
        }
        let state = self.state.borrow();
        let used = |&word: &usize| state.summary.is_read(word) || self.arena.was_written(word);
        let words = (0..self.arena.len() / WORD).filter(used);
        if let Some(word) = names.differs_at_start(&self.arena, words) {
            drop(state);
            panic!("{} tells apart what is alike", self.name_of(word));
        }
    }

    /// How the next search uses what is alike.
    pub(crate) fn set_symmetry(&self, reduction: Reduction) {
        let nothing = self.arena.names().is_empty();
        self.symmetry.folds.set(!nothing && reduction == Reduction::Full);
        *self.symmetry.seen.borrow_mut() = (reduction == Reduction::Named).then(Seen::default);
    }

    /// How many states were seen that differ in more than names, if that was counted.
    pub(crate) fn nameless(&self) -> Option<u64> {
        self.symmetry.seen.borrow().as_ref().map(|seen| seen.len() as u64)
    }

    /// The search begins again.
    pub(crate) fn forget_nameless(&self) {
        if let Some(seen) = &mut *self.symmetry.seen.borrow_mut() {
            seen.clear();
        }
    }

    /// What tells states apart, between steps or in the middle of one, when a value is picked.
    pub(crate) fn state_key(&self, state: &State, in_the_middle: bool) -> Key {
        let mut key = if self.symmetry.folds.get() {
            self.canonical_key(state)
        } else {
            Key { hash: self.key(state, &Order::AS_IT_IS), stands_for: 1 }
        };
        if let Some(seen) = &mut *self.symmetry.seen.borrow_mut() {
            let alike = !self.arena.names().is_empty();
            let nameless = if alike { self.canonical_key(state).hash } else { key.hash };
            let nameless = fold(nameless, in_the_middle.into());
            let about = self.about_to_do(state, in_the_middle);
            let known = seen.entry(nameless).or_insert_with(|| about.clone());
            assert!(
                *known == about,
                "a state is taken for another: \"{known}\" comes next there, and here \"{about}\""
            );
        }
        if in_the_middle {
            key.hash = fold(key.hash, sort::PICK);
        }
        key
    }

    /// What all places are about to do and in which functions, without names.
    fn about_to_do(&self, state: &State, in_the_middle: bool) -> String {
        let one = |(id, place): (usize, &Place)| {
            if in_the_middle && id == state.running {
                return "pick".to_owned();
            }
            let word = place.next.word().map(|word| self.arena.names().word(word).1 as usize);
            let calls = state.tasks[place.task].calls.iter().map(|call| call.function);
            let words = [place.next.verb().to_owned()].into_iter().chain(word.map(|word| self.name_of(word)));
            words.chain(calls.map(str::to_owned)).collect::<Vec<_>>().join(" ")
        };
        state.places.iter().enumerate().map(one).collect::<Vec<_>>().join("; ")
    }

    /// A key of the state that does not depend on which of the like things is which.
    fn canonical_key(&self, state: &State) -> Key {
        let names = self.arena.names();
        let known = self.known_without_names(state);
        let mut sequence: [u8; MOST] = core::array::from_fn(|index| index as u8 + 1);
        for group in &names.groups {
            sequence[group.start - 1..group.end - 1].sort_unstable_by_key(|&thing| known[usize::from(thing)]);
        }
        let ends = |at: usize| {
            let thing = sequence[at];
            let group = names.alike(thing);
            let same =
                |&other: &u8| group.contains(&other.into()) && known[usize::from(other)] == known[usize::from(thing)];
            at + sequence[at..names.width() - 1].iter().take_while(|other| same(other)).count()
        };
        let ends: [usize; MOST] = core::array::from_fn(|at| if at < names.width() - 1 { ends(at) } else { at });
        let (mut smallest, mut ways) = (u64::MAX, 0);
        each_order(&mut sequence[..names.width() - 1], &ends, 0, &mut |sequence| {
            let mut order = Order::AS_IT_IS;
            for (index, &thing) in sequence.iter().enumerate() {
                order.0[usize::from(thing)] = index as u8 + 1;
            }
            let key = self.key(state, &order);
            ways = if key < smallest { 1 } else { ways + u64::from(key == smallest) };
            smallest = smallest.min(key);
        });
        Key { hash: smallest, stands_for: names.orders() / ways }
    }

    /// What is known of each thing without naming others.
    fn known_without_names(&self, state: &State) -> [u64; MOST + 1] {
        let names = self.arena.names();
        let of = |thing: usize| {
            let sum = self.arena.sum_of(thing);
            let Some(task) = names.task(thing as u8) else { return sum };
            let task = &state.tasks[task];
            let seen = fold(fold(sum, task.history.nameless()), task.statement.nameless());
            fold(seen, task.place.map_or(0, |place| place as u64 + 1))
        };
        core::array::from_fn(|thing| if (1..names.width()).contains(&thing) { of(thing) } else { 0 })
    }
}

/// Calls `f` with each order of `sequence` in which the things up to `ends` of each place have changed places.
fn each_order(sequence: &mut [u8], ends: &[usize; MOST], at: usize, f: &mut impl FnMut(&[u8])) {
    if at == sequence.len() {
        return f(sequence);
    }
    for other in at..ends[at] {
        sequence.swap(at, other);
        each_order(sequence, ends, at + 1, f);
        sequence.swap(at, other);
    }
}

/// A term for words of one thing that point into another.
#[inline]
pub(crate) fn pair(order: &Order, of: usize, pointed: usize, sum: u64) -> u64 {
    term(order.of(of as u8) << 8 | order.of(pointed as u8), sum)
}
