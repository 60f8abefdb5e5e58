//! The memory model `weak`: RC11 without load buffering, by histories and views.
//!
//! Each shared word has a *history*: the stores to it in modification order. Each place (a CPU, an agent) has a *view*:
//! for each word the oldest store that it may still read. A load may read any store from there on, and which one is a
//! choice of the search. The model is the operational form of RC11 (Lahav, Vafeiadis, Kang, Hur, Dreyer, PLDI 2017) with
//! the views of the promising semantics (Kang, Hur, Lahav, Vafeiadis, Dreyer, POPL 2017) and without its promises.
//!
//! | step | what it does to views |
//! | --- | --- |
//! | load | the store read becomes the oldest that may be read; its view joins what an acquire fence will take in |
//! | acquire load | its view joins the place's view at once |
//! | store | is added to the end of the history; it carries the view of the last release fence |
//! | release store | carries the place's view |
//! | read-modify-write | reads the newest store and adds the next; carries what that one carried, too (release sequence) |
//! | acquire fence | takes in what was read before it |
//! | release fence | sets what later stores carry |
//! | full fence | both, and the place's view and the view of all full fences become each other's join |
//! | `*_full` | full fence, read-modify-write, full fence, as one step; where a compare fails, a relaxed load |
//!
//! # What follows from it, and what is left out
//!
//! * Coherence holds for each word: nobody reads backwards.
//! * No load buffering: a step reads only what was stored before it. Hardware reorders a load with a later store; RC11
//!   with its acyclic `po` and `rf` does not, and neither does this. A read-modify-write therefore comes before the stores
//!   behind it in program order, for everybody.
//! * A store always goes to the end of the history. RC11 would let it go before the stores of others that it does not
//!   know: executions are left out in which `po`, `rf` and modification order together have a cycle, of which the shapes
//!   2+2W and S are the smallest. All of them need two plain stores to one word that race, and nothing here writes a shared
//!   word so: a slot has one writer, everything else is changed by read-modify-writes or under a lock. In exchange the
//!   newest store is *the* content of memory, for read-modify-writes, for checks and for whoever looks from outside.
//! * A store goes on being readable until [`Config::history`](crate::Config) newer ones are there. Without a bound a loop
//!   that stores would have no end of states.
//! * A compare-and-exchange that fails is a load, and may fail by an older store, except in a wait loop.
//! * A store continues no release sequence of its own CPU (as C++20 has it); read-modify-writes of anybody do.
//!
//! # Beyond words
//!
//! * *Views belong to places.* A context switch changes nothing about them. A task that migrates gets its order from the
//!   scheduler's words. An interrupt handler runs on the view of its CPU; taking an interrupt and returning from one is no
//!   barrier.
//! * *An interrupt carries its sender's view*, and the CPU that takes it joins it: `Platform`'s contract, point 4. What a
//!   device raises carries nothing.
//! * *A local word* has no history: its one user sees the newest store. So does a check, and what is done quietly; a quiet
//!   store is a relaxed one, and a poke is seen by all at once.
//! * *Allocating* an object takes in what its former user knew when it freed it; an allocator's lock does that. What was
//!   stored to its words before can still be read where nothing orders the load behind that.
//! * *Stopping the machine* is a full fence on every place.
//! * *An agent* has a view of its own: a page walker reads what it likes of the history of an entry, until its CPU flushes
//!   or loads a root, when it comes to see what that CPU sees ([`Machine::refresh`](crate::Machine::refresh)).
//!
//! # Use after free
//!
//! Views know how far each place had come. An object must not be freed before whoever frees it knows, by its view, of all
//! that other places have done to it: else hardware could do it later. That is found as a data race between an access and
//! the free, and reported as what it comes to, a use after free. It is how a missing release shows in this model, where a
//! step that has been done is done.
//!
//! # States
//!
//! Only what can still make a difference is compared: stores that some place could read, numbered from the oldest of
//! them, views cut to those numbers, and how far places had come, in terms of accesses to live objects that somebody does
//! not know of. Which places load a word at all is learned as the search goes, in the manner of `reduce.rs`: a store that
//! only a place could read that never loads the word is as good as gone, and the search starts again if it does load it.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::mix::{fold, term};
use crate::state::State;

/// How much has been seen: for each place how far it had come, then for each location the oldest store that counts.
/// Shared until it changes: stores, snapshots and other views hold the same.
#[derive(Clone, Default, Debug)]
struct View(Rc<Vec<u32>>);

impl View {
    fn at(&self, index: usize) -> u32 {
        self.0.get(index).copied().unwrap_or(0)
    }

    fn raise(&mut self, index: usize, time: u32) {
        if self.at(index) >= time {
            return;
        }
        let times = Rc::make_mut(&mut self.0);
        if times.len() <= index {
            times.resize(index + 1, 0);
        }
        times[index] = time;
    }

    fn join(&mut self, other: &View) {
        if Rc::ptr_eq(&self.0, &other.0) {
            return;
        }
        let Some(first) = other.0.iter().enumerate().position(|(index, &time)| time > self.at(index)) else { return };
        let mine = Rc::make_mut(&mut self.0);
        if mine.len() < other.0.len() {
            mine.resize(other.0.len(), 0);
        }
        for (mine, &others) in mine.iter_mut().zip(&*other.0).skip(first) {
            *mine = (*mine).max(others);
        }
    }
}

/// The views of a place.
#[derive(Clone, Default, Debug)]
struct Views {
    /// What it has seen.
    now: View,
    /// What an acquire fence adds.
    acquire: View,
    /// What its relaxed stores carry: its view at its last release fence.
    release: View,
    /// It has touched an object since its clock went on.
    touched: bool,
}

#[derive(Clone, Debug)]
struct Store {
    value: u64,
    carries: View,
}

/// A word that was stored to.
#[derive(Clone, Debug)]
struct Location {
    word: usize,
    /// The number of the oldest store that is kept.
    first: u32,
    stores: VecDeque<Store>,
}

impl Location {
    fn newest(&self) -> u32 {
        self.first + self.stores.len() as u32 - 1
    }
}

/// Which orders an access has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strength {
    pub(crate) acquire: bool,
    pub(crate) release: bool,
    pub(crate) full: bool,
}

/// Who has touched a freed object without the one who frees it knowing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Unordered {
    pub(crate) place: usize,
    /// Not by an access: its hardware did.
    pub(crate) hardware: bool,
}

/// What an execution has come to, beside the newest store of each word.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past {
    views: Vec<Views>,
    /// The view of all full fences.
    full: View,
    locations: Vec<Rc<Location>>,
    /// What interrupts under way carry: place, vector, view. A vector of an NMI has bit 8 set.
    carried: Vec<(usize, u32, View)>,
    /// When each place has touched each slot of a cache last: by accesses, and by its hardware.
    touched: Vec<[u32; 2]>,
    /// For each slot, what whoever freed it knew, while it is free.
    freed: Vec<Option<View>>,
    /// For each task that waits, the views of its place when its round began.
    rounds: Vec<Option<Views>>,
}

/// A search under `weak`, and the execution that is under way.
#[derive(Debug, Default)]
pub(crate) struct Weak {
    past: Past,
    /// How many stores of a word are kept.
    room: usize,
    /// One more than the location of each word; 0 if it was not stored to.
    of_word: Vec<u32>,
    /// One more than the slot of a cache that each word is in; 0 if it is in none.
    slot_of: Vec<u32>,
    /// How many slots there are.
    slots: usize,
    /// Whether it is learned who loads what.
    learns: bool,
    /// The places that load each word.
    loaders: Vec<u16>,
    /// Those of which that was learned too late: they count when the search starts again.
    late_loaders: Vec<u16>,
    /// Stores of this word were given up because no loader could read them.
    relied: Vec<bool>,
}

impl Weak {
    /// For a search: `slots` are the parts of the arena that objects come and go in. `learns` says that the search starts
    /// again when something was given up too early.
    pub(crate) fn new(words: usize, room: usize, slots: &[core::ops::Range<usize>], learns: bool) -> Weak {
        let mut slot_of = vec![0; words];
        for (slot, range) in slots.iter().enumerate() {
            slot_of[range.clone()].fill(slot as u32 + 1);
        }
        Weak {
            room: room.max(1),
            of_word: vec![0; words],
            slot_of,
            slots: slots.len(),
            learns,
            loaders: vec![0; words],
            late_loaders: vec![0; words],
            relied: vec![false; words],
            ..Weak::default()
        }
    }

    /// Before an execution.
    pub(crate) fn reset(&mut self, places: usize, tasks: usize) {
        self.go_back(Past {
            views: vec![Views::default(); places],
            touched: vec![[0; 2]; self.slots * places],
            freed: vec![None; self.slots],
            rounds: vec![None; tasks],
            ..Past::default()
        });
    }

    /// What the execution has come to.
    pub(crate) fn past(&self) -> &Past {
        &self.past
    }

    /// Goes back to what this execution, or the one before it, had come to.
    pub(crate) fn go_back(&mut self, past: Past) {
        for location in self.past.locations.iter().skip(past.locations.len()) {
            self.of_word[location.word] = 0;
        }
        self.past = past;
    }

    /// Keeps what is known and forgets what was relied on.
    pub(crate) fn start_again(&mut self) {
        self.relied.fill(false);
        for (loaders, late) in self.loaders.iter_mut().zip(&mut self.late_loaders) {
            *loaders |= core::mem::take(late);
        }
    }

    fn location(&self, word: usize) -> Option<usize> {
        self.of_word[word].checked_sub(1).map(|id| id as usize)
    }

    /// Where a location stands in views.
    fn index(&self, id: usize) -> usize {
        self.past.views.len() + id
    }

    /// A place loads a word. Says whether something was given up because it did not.
    pub(crate) fn loads(&mut self, place: usize, word: usize) -> bool {
        let bit = 1 << place;
        let is_late = self.loaders[word] & bit == 0 && self.relied[word];
        let loaders = if is_late { &mut self.late_loaders } else { &mut self.loaders };
        loaders[word] |= bit;
        is_late
    }

    /// How many stores a place could read.
    pub(crate) fn readable(&self, place: usize, word: usize) -> usize {
        let Some(id) = self.location(word) else { return 1 };
        let location = &self.past.locations[id];
        let oldest = self.past.views[place].now.at(self.index(id)).max(location.first);
        (location.newest() - oldest) as usize + 1
    }

    /// The value of the store that has `age` newer ones, if there is a history.
    pub(crate) fn value(&self, word: usize, age: usize) -> Option<u64> {
        let location = &self.past.locations[self.location(word)?];
        Some(location.stores[location.stores.len() - 1 - age].value)
    }

    /// A place reads the store that has `age` newer ones.
    pub(crate) fn read(&mut self, place: usize, word: usize, age: usize, acquire: bool) {
        let Some(id) = self.location(word) else { return };
        let index = self.index(id);
        let location = &self.past.locations[id];
        let store = &location.stores[location.stores.len() - 1 - age];
        let views = &mut self.past.views[place];
        views.now.raise(index, location.newest() - age as u32);
        if acquire {
            views.now.join(&store.carries);
        } else {
            views.acquire.join(&store.carries);
        }
    }

    /// A place stores `value` over `old`, the newest. `continues` says that this is one step with reading that.
    pub(crate) fn store(&mut self, place: usize, word: usize, old: u64, value: u64, release: bool, continues: bool) {
        let id = self.location(word).unwrap_or_else(|| {
            let initial = Store { value: old, carries: View::default() };
            self.past.locations.push(Rc::new(Location { word, first: 0, stores: VecDeque::from([initial]) }));
            self.of_word[word] = self.past.locations.len() as u32;
            self.past.locations.len() - 1
        });
        let index = self.index(id);
        if release {
            self.publish(place);
        }
        let location = Rc::make_mut(&mut self.past.locations[id]);
        let time = location.newest() + 1;
        let views = &mut self.past.views[place];
        views.now.raise(index, time);
        let mut carries = if release { views.now.clone() } else { views.release.clone() };
        if continues && let Some(before) = location.stores.back() {
            carries.join(&before.carries);
        }
        location.stores.push_back(Store { value, carries });
        if location.stores.len() > self.room {
            location.stores.pop_front();
            location.first += 1;
        }
    }

    /// A word has a new value that everybody sees at once.
    pub(crate) fn forget(&mut self, word: usize, value: u64) {
        if let Some(id) = self.location(word) {
            let location = Rc::make_mut(&mut self.past.locations[id]);
            location.first = location.newest() + 1;
            location.stores.clear();
            location.stores.push_back(Store { value, carries: View::default() });
        }
    }

    /// What a place has seen is about to be handed on: what it touches from here on is not part of that.
    fn publish(&mut self, place: usize) {
        let views = &mut self.past.views[place];
        if core::mem::take(&mut views.touched) {
            let clock = views.now.at(place) + 1;
            views.now.raise(place, clock);
        }
    }

    pub(crate) fn acquire_fence(&mut self, place: usize) {
        let Views { now, acquire, .. } = &mut self.past.views[place];
        now.join(acquire);
    }

    pub(crate) fn release_fence(&mut self, place: usize) {
        self.publish(place);
        let views = &mut self.past.views[place];
        views.release.clone_from(&views.now);
    }

    pub(crate) fn full_fence(&mut self, place: usize) {
        self.acquire_fence(place);
        self.publish(place);
        let views = &mut self.past.views[place];
        views.now.join(&self.past.full);
        self.past.full.clone_from(&views.now);
        views.release.clone_from(&views.now);
    }

    /// A full fence on every place.
    pub(crate) fn stop(&mut self) {
        for _ in 0..2 {
            for place in 0..self.past.views.len() {
                self.full_fence(place);
            }
        }
    }

    /// An interrupt is sent with the sender's view.
    pub(crate) fn send(&mut self, from: usize, to: usize, vector: u32) {
        self.publish(from);
        let view = self.past.views[from].now.clone();
        match self.past.carried.iter_mut().find(|&&mut (place, other, _)| (place, other) == (to, vector)) {
            Some((_, _, carried)) => carried.join(&view),
            None => self.past.carried.push((to, vector, view)),
        }
    }

    /// A place takes an interrupt while `task` runs on it.
    pub(crate) fn deliver(&mut self, place: usize, vector: u32, task: usize) {
        if let Some(found) = self.past.carried.iter().position(|&(to, other, _)| (to, other) == (place, vector)) {
            let (.., view) = self.past.carried.swap_remove(found);
            self.past.views[place].now.join(&view);
        }
        // What a handler sees and stores is not forgotten with the round that it came into.
        self.past.rounds[task] = None;
    }

    /// `to` sees what `from` sees.
    pub(crate) fn refresh(&mut self, from: usize, to: usize) {
        self.publish(from);
        let view = self.past.views[from].now.clone();
        self.past.views[to].now.join(&view);
    }

    /// A wait loop of `task` begins a round.
    pub(crate) fn begin_round(&mut self, place: usize, task: usize) {
        self.past.rounds[task] = Some(self.past.views[place].clone());
    }

    /// Whether `task` is in a round of a wait loop.
    pub(crate) fn waits(&self, task: usize) -> bool {
        self.past.rounds[task].is_some()
    }

    /// The round is over. If it has failed it is as if it had not been: whoever comes late sees less.
    pub(crate) fn end_round(&mut self, place: usize, task: usize, failed: bool) {
        if let Some(before) = self.past.rounds[task].take()
            && failed
        {
            let touched = self.past.views[place].touched;
            self.past.views[place] = Views { touched: touched | before.touched, ..before };
        }
    }

    fn slot(&self, word: usize) -> Option<usize> {
        self.slot_of[word].checked_sub(1).map(|slot| slot as usize)
    }

    /// A place, or its hardware, touches a word.
    pub(crate) fn touch(&mut self, place: usize, word: usize, hardware: bool) {
        if let Some(slot) = self.slot(word) {
            let views = &mut self.past.views[place];
            views.touched = true;
            self.past.touched[slot * self.past.views.len() + place][usize::from(hardware)] =
                self.past.views[place].now.at(place) + 1;
        }
    }

    /// What all hardware has done so far is over, for everybody.
    pub(crate) fn hardware_is_done(&mut self) {
        self.past.touched.iter_mut().for_each(|touched| touched[1] = 0);
    }

    /// A place frees the object at a word. Says who may not be done with it.
    pub(crate) fn free(&mut self, place: usize, word: usize) -> Option<Unordered> {
        let slot = self.slot(word)?;
        self.publish(place);
        let places = self.past.views.len();
        let now = &self.past.views[place].now;
        let mut unordered = None;
        for other in 0..places {
            let touched = &mut self.past.touched[slot * places + other];
            for hardware in [false, true] {
                if other != place && touched[usize::from(hardware)] > now.at(other) {
                    unordered = unordered.or(Some(Unordered { place: other, hardware }));
                }
            }
            *touched = [0; 2];
        }
        self.past.freed[slot] = Some(now.clone());
        unordered
    }

    /// A place allocates the object at a word.
    pub(crate) fn alloc(&mut self, place: usize, word: usize) {
        if let Some(slot) = self.slot(word)
            && let Some(view) = self.past.freed[slot].take()
        {
            self.past.views[place].now.join(&view);
        }
    }

    /// The oldest store of each location that matters.
    fn floors(&mut self) -> Vec<u32> {
        let places = self.past.views.len();
        // A task that waits has the views of its round to go back to, on whatever place: they count for all.
        let waiting: Vec<&View> = self.past.rounds.iter().flatten().map(|views| &views.now).collect();
        let mut floors = Vec::with_capacity(self.past.locations.len());
        for (id, location) in self.past.locations.iter().enumerate() {
            let (index, newest) = (places + id, location.newest());
            let oldest = |loaders: u16| {
                let of = |place: usize| (loaders & 1 << place != 0).then(|| self.past.views[place].now.at(index));
                let waiting = waiting.iter().filter(|_| loaders != 0).map(|view| view.at(index));
                (0..places).filter_map(of).chain(waiting).min().unwrap_or(newest).max(location.first)
            };
            let all = oldest(u16::MAX);
            let floor = if self.learns { oldest(self.loaders[location.word]) } else { all };
            self.relied[location.word] |= floor > all;
            floors.push(floor);
        }
        floors
    }

    /// For each place, when it touched live objects so that another place does not know: in order, each once.
    fn unknown_touches(&self) -> Vec<Vec<u32>> {
        let places = self.past.views.len();
        let of = |place: usize| {
            let known =
                (0..places).filter(|&other| other != place).map(|other| self.past.views[other].now.at(place)).min();
            let known = known.unwrap_or(u32::MAX);
            let touches = self.past.touched.iter().skip(place).step_by(places).flatten().copied();
            let mut touches: Vec<u32> = touches.filter(|&time| time > known).collect();
            touches.sort_unstable();
            touches.dedup();
            touches
        };
        (0..places).map(of).collect()
    }

    /// A hash of all that the future depends on, apart from the newest store of each word.
    pub(crate) fn hash(&mut self, state: &State, portable: impl Fn(u64) -> u64) -> u64 {
        const STORES: u64 = 1 << 32;
        const CARRIED: u64 = 2 << 32;
        const SLOTS: u64 = 3 << 32;
        const TASKS: u64 = 4 << 32;
        const FREED: u64 = 5 << 32;
        let (floors, touches) = (self.floors(), self.unknown_touches());
        let past = &self.past;
        let mut sums = Sums { past, floors: &floors, touches: &touches, known: Vec::with_capacity(32) };
        let mut hash = fold(0, sums.view(&past.full));
        for (place, views) in past.views.iter().enumerate() {
            hash = fold(hash, sums.views(views, Some(place)));
        }
        for (location, &floor) in past.locations.iter().zip(&floors) {
            let kept = location.stores.iter().skip((floor - location.first) as usize);
            let mut carried = 0;
            let mut history = 0;
            for store in kept {
                carried = sums.view(&store.carries);
                history = fold(fold(history, portable(store.value)), carried);
            }
            // A word that has only its newest store left, and that carries nothing, is as if it had never been stored to.
            if floor < location.newest() || carried != 0 {
                hash ^= term(STORES | location.word as u64, history);
            }
        }
        for (place, vector, carried) in &past.carried {
            hash ^= term(CARRIED | (*place as u64) << 16 | u64::from(*vector), sums.view(carried));
        }
        for (index, times) in past.touched.iter().enumerate() {
            let ranks = times.map(|time| sums.rank(index % past.views.len(), time));
            if ranks != [0; 2] {
                hash ^= term(SLOTS | index as u64, ranks[0] << 32 | ranks[1]);
            }
        }
        for (slot, freed) in past.freed.iter().enumerate() {
            if let Some(freed) = freed {
                hash ^= term(FREED | slot as u64, sums.view(freed));
            }
        }
        for (id, (task, round)) in state.tasks.iter().zip(&past.rounds).enumerate() {
            let flags = u64::from(task.wait.stale) | u64::from(task.wait.newest) << 1;
            let round = round.as_ref().map_or(0, |round| sums.views(round, task.place));
            if flags != 0 || round != 0 {
                hash ^= term(TASKS | id as u64, fold(round, flags));
            }
        }
        hash
    }
}

/// Hashes of views, as sums over what can still make a difference.
struct Sums<'a> {
    past: &'a Past,
    floors: &'a [u32],
    touches: &'a [Vec<u32>],
    /// Of those that were asked for: many are one and the same.
    known: Vec<(View, u64)>,
}

impl Sums<'_> {
    /// A time of a place, numbered by what it has touched.
    fn rank(&self, place: usize, time: u32) -> u64 {
        self.touches[place].partition_point(|&touched| touched <= time) as u64
    }

    fn time(&self, index: usize, time: u32) -> u64 {
        let (id, number) = match index.checked_sub(self.touches.len()) {
            None => (1 << 40 | index as u64, self.rank(index, time)),
            Some(id) => (self.past.locations[id].word as u64, u64::from(time.saturating_sub(self.floors[id]))),
        };
        if number == 0 { 0 } else { term(id, number) }
    }

    fn view(&mut self, view: &View) -> u64 {
        if let Some(&(_, sum)) = self.known.iter().find(|(known, _)| Rc::ptr_eq(&known.0, &view.0)) {
            return sum;
        }
        let sum =
            view.0.iter().enumerate().fold(0, |sum: u64, (index, &time)| sum.wrapping_add(self.time(index, time)));
        self.known.push((view.clone(), sum));
        sum
    }

    /// `own` is the place whose clock counts for nothing: it goes on before it is handed on.
    fn views(&mut self, views: &Views, own: Option<usize>) -> u64 {
        let mut acquire = views.now.clone();
        acquire.join(&views.acquire);
        let mut without_own =
            |view: &View| self.view(view).wrapping_sub(own.map_or(0, |place| self.time(place, view.at(place))));
        let (now, acquire) = (without_own(&views.now), without_own(&acquire));
        fold(fold(now, acquire), self.view(&views.release))
    }
}
