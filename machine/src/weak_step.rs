//! Steps under [`MemoryModel::Weak`](crate::MemoryModel::Weak): the same halves as in `step.rs`, on histories and views.

use core::cell::RefMut;
use core::panic::Location;

use lazytlb_core::memory::{At, Ordering};
use lazytlb_kasan::{Access, Addr, Title};

use crate::machine::Machine;
use crate::policy::{Pick, Policy};
use crate::schedule::Event;
use crate::state::{Action, End, Next, State};
use crate::step::{Order, Rmw, sort};
use crate::verdict::Kind;
use crate::weak::{Strength, Unordered};

/// More stores than any load can choose from.
const MOST: usize = 255;

impl Machine {
    /// How an access is ordered, when what was planted is taken off.
    fn strength(&self, order: Order) -> Strength {
        let relaxed = self.is_relaxed(order.at.label);
        let has = |orders: [Ordering; 2]| !relaxed && orders.contains(&order.at.order);
        Strength {
            acquire: has([Ordering::Acquire, Ordering::AcqRel]),
            release: has([Ordering::Release, Ordering::AcqRel]),
            full: order.full && !relaxed,
        }
    }

    #[cold]
    pub(crate) fn load_weakly(&self, word: usize, order: Order, at: &'static Location<'static>) -> u64 {
        self.point(Next::Load { word, local: order.local });
        self.check(word, Access::Read, at);
        let acquire = self.strength(order).acquire;
        let mut state = self.state.borrow_mut();
        let (who, me) = (state.who(), state.running);
        state.summary.read(word, who);
        state.watch(word);
        self.weak.borrow_mut().touch(me, word, false);
        let (value, age) = if order.local {
            (self.arena.read(word), 0)
        } else {
            let readable = self.weak.borrow().readable(me, word).min(MOST) as u8;
            let Some(age) = self.pick_age(&mut state, word, &ages(readable)) else {
                drop(state);
                self.suspend_for_ever()
            };
            (self.read_age(me, word, age, acquire), age)
        };
        self.observe_word(state, sort::LOAD + (word as u64) * sort::KINDS, value);
        let shown = |name: String| format!("load {name} -> {}{}", self.show(value), newer(age));
        self.trace(shown, word, order);
        self.tell_load(word);
        value
    }

    /// An agent's hardware reads a word as part of the step under way.
    pub(crate) fn look_weakly(&self, word: usize) -> u64 {
        let mut state = self.state.borrow_mut();
        let (who, me) = (state.who(), state.running);
        state.summary.read(word, who);
        let readable = self.weak.borrow().readable(me, word).min(MOST) as u8;
        let Some(age) = self.pick_age(&mut state, word, &ages(readable)) else {
            drop(state);
            self.suspend_for_ever()
        };
        let value = self.read_age(me, word, age, false);
        self.observe_word(state, sort::LOAD + (word as u64) * sort::KINDS, value);
        value
    }

    /// The running task observed a value.
    fn observe_word(&self, mut state: RefMut<'_, State>, sort: u64, value: u64) {
        state.observe(sort, self.arena.portable(value));
    }

    /// The running place reads the store of this age.
    fn read_age(&self, me: usize, word: usize, age: u8, acquire: bool) -> u64 {
        let mut weak = self.weak.borrow_mut();
        weak.read(me, word, age.into(), acquire);
        weak.value(word, age.into()).unwrap_or_else(|| self.arena.read(word))
    }

    /// Which of the stores of these ages is read: all are explored. `None` if the execution is over.
    fn pick_age(&self, state: &mut State, word: usize, ages: &[u8]) -> Option<u8> {
        let me = state.running;
        if self.weak.borrow_mut().loads(me, word) {
            state.summary.was_wrong();
        }
        let handler = state.me().in_handler();
        let age = match ages {
            &[only] => only,
            _ if state.current().wait.newest && !handler => ages[0],
            _ => self.pick_read(state, ages)?,
        };
        if !handler && age > 0 {
            state.current().wait.stale = true;
        }
        Some(age)
    }

    /// Asks the policy.
    fn pick_read(&self, state: &mut State, ages: &[u8]) -> Option<u8> {
        state.points += 1;
        let me = state.running;
        let mut policy = self.policy.borrow_mut();
        let picked = if let Policy::Replay(cursor) = &mut *policy {
            let read = cursor.next_read().filter(|&(place, _)| usize::from(place) == me);
            read.map(|(_, age)| age).filter(|age| ages.contains(age))
        } else {
            let actions: Vec<Action> = ages.iter().copied().map(Action::Read).collect();
            match policy.pick(state.points, &actions, me, crate::policy::Key::default) {
                Pick::Act(Action::Read(age)) => Some(age),
                _ => None,
            }
        };
        match picked {
            Some(age) => self.record.borrow_mut().push(Event::Read(me as u8, age)),
            None => state.end = Some(End::Stale),
        }
        picked
    }

    #[cold]
    pub(crate) fn store_weakly(&self, word: usize, value: u64, order: Order, at: &'static Location<'static>) {
        self.point(Next::Store { word, local: order.local });
        self.check(word, Access::Write, at);
        let strength = self.strength(order);
        let before = self.watched_before(word);
        let mut state = self.state.borrow_mut();
        let (who, me) = (state.who(), state.running);
        state.summary.write(word, who);
        self.weak.borrow_mut().touch(me, word, false);
        if order.local {
            self.commit(&mut state, word, value);
        } else {
            self.append(&mut state, word, value, strength.release, false);
        }
        self.observe_word(state, sort::STORE + (word as u64) * sort::KINDS, value);
        self.trace(|name| format!("store {name} = {}", self.show(value)), word, order);
        self.tell_store(word, before, value);
    }

    /// Adds a store to the history of a word, and to memory.
    fn append(&self, state: &mut State, word: usize, value: u64, release: bool, continues: bool) {
        let old = self.arena.read(word);
        self.weak.borrow_mut().store(state.running, word, old, value, release, continues);
        self.commit(state, word, value);
    }

    /// A quiet store: a relaxed one that is no step of its own.
    #[cold]
    pub(crate) fn store_quietly(&self, word: usize, value: u64, local: bool, continues: bool) {
        let mut state = self.state.borrow_mut();
        if local {
            self.commit(&mut state, word, value);
        } else {
            self.append(&mut state, word, value, false, continues);
        }
    }

    #[cold]
    pub(crate) fn rmw_weakly(
        &self,
        word: usize,
        rmw: Rmw,
        order: Order,
        at: &'static Location<'static>,
        apply: &dyn Fn(usize) -> Option<usize>,
    ) -> u64 {
        let dropped = self.is_dropped(order.at.label);
        let strength = self.strength(order);
        self.point(if strength.full { Next::FullRmw { word } } else { Next::Rmw { word } });
        self.check(word, Access::Write, at);
        let mut state = self.state.borrow_mut();
        let (who, me) = (state.who(), state.running);
        state.summary.read(word, who);
        state.watch(word);
        self.weak.borrow_mut().touch(me, word, false);
        let newest = self.arena.read(word);
        let task = state.places[me].task;
        let compares = rmw == Rmw::CompareExchange && !dropped && !self.weak.borrow().waits(task);
        let age = if compares {
            let picked = self.ages_that_fail(me, word, apply);
            let age = self.pick_age(&mut state, word, &picked);
            drop(picked);
            age
        } else {
            Some(0)
        };
        let Some(age) = age else {
            drop(state);
            self.suspend_for_ever()
        };
        let new = if dropped || age > 0 { None } else { apply(newest as usize) };
        let old = match new {
            Some(new) => {
                self.exchange(&mut state, word, new as u64, strength);
                newest
            }
            None => {
                self.read_age(me, word, age, order.failure == Ordering::Acquire && !self.is_relaxed(order.at.label))
            }
        };
        self.observe_word(state, sort::RMW + (word as u64) * sort::KINDS + ((rmw as u64) << 60), old);
        let now = new.map_or(old, |new| new as u64);
        let shown = |name: String| format!("{rmw} {name}: {} -> {}{}", self.show(old), self.show(now), newer(age));
        self.trace(shown, word, order);
        if new.is_some() {
            self.tell_store(word, self.watched(word).then_some(old), now);
        }
        old
    }

    /// The ages of the stores that a compare-and-exchange may read: the newest, and older ones by which it fails.
    fn ages_that_fail(&self, me: usize, word: usize, apply: &dyn Fn(usize) -> Option<usize>) -> Vec<u8> {
        let weak = self.weak.borrow();
        let fails = |age: u8| weak.value(word, age.into()).is_some_and(|value| apply(value as usize).is_none());
        let readable = weak.readable(me, word).min(MOST) as u8;
        (0..readable).filter(|&age| age == 0 || fails(age)).collect()
    }

    /// The writing half of a read-modify-write, with what it reads.
    fn exchange(&self, state: &mut State, word: usize, new: u64, strength: Strength) {
        let (who, me) = (state.who(), state.running);
        state.summary.write(word, who);
        if strength.full {
            state.summary.full_fence(who);
            self.weak.borrow_mut().full_fence(me);
        }
        self.weak.borrow_mut().read(me, word, 0, strength.acquire);
        self.append(state, word, new, strength.release, true);
        if strength.full {
            self.weak.borrow_mut().full_fence(me);
        }
    }
}

// What is not an access.
impl Machine {
    #[cold]
    pub(crate) fn fence_weakly(&self, at: At) {
        let full = at.order == Ordering::SeqCst;
        self.point(Next::Order { full });
        let mut state = self.state.borrow_mut();
        let (who, me) = (state.who(), state.running);
        let mut weak = self.weak.borrow_mut();
        if full {
            state.summary.full_fence(who);
            weak.full_fence(me);
        } else {
            if at.order != Ordering::Release {
                weak.acquire_fence(me);
            }
            if at.order != Ordering::Acquire {
                weak.release_fence(me);
            }
        }
        drop(weak);
        state.observe(sort::FENCE, at.order as u64);
        drop(state);
        self.note(|| format!("fence {:?} {:?}", at.order, at.label));
    }

    /// The end of a round that has failed. Says whether there is a newer store of a word that it read: the task need not
    /// wait then.
    #[cold]
    pub(crate) fn round_has_failed(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let (me, task) = (state.running, state.places[state.running].task);
        self.weak.borrow_mut().end_round(me, task, true);
        let of_task = &mut state.tasks[task];
        let stale = core::mem::take(&mut of_task.wait.stale);
        of_task.wait.newest = stale;
        // The round that reads the newest at once is explored as well, and comes to the same.
        if stale && matches!(&*self.policy.borrow(), Policy::Dfs(_)) {
            // Where it comes to is not compared with what was seen: whether that ends is left to what is.
            self.execution_ends();
            state.end = Some(End::Pruned);
            drop(state);
            self.suspend_for_ever()
        }
        stale
    }

    /// Somebody uses the object at `pointer` without an access of the program: the hardware of the running CPU has read it
    /// until now. Whoever frees it must know that the CPU is done with it; see `weak`. No step.
    pub fn touch<T>(&self, pointer: *const T) {
        if let Some(word) = self.weak_index(pointer.addr()) {
            let me = self.state.borrow().running;
            self.weak.borrow_mut().touch(me, word, true);
        }
    }

    /// The hardware of all CPUs is done with what it did by [`touch`](Self::touch) until now, and whoever goes on from here
    /// knows it: a broadcast invalidation that has been waited for. No step.
    pub fn hardware_is_done(&self) {
        if self.is_weak() {
            self.weak.borrow_mut().hardware_is_done();
        }
    }

    /// The agent at `place` comes to see all that the running CPU sees; it need not have, where memory is weak. No step.
    pub fn refresh(&self, place: usize) {
        if self.is_weak() {
            let me = self.state.borrow().running;
            self.weak.borrow_mut().refresh(me, place);
        }
    }

    fn weak_index(&self, address: usize) -> Option<usize> {
        if self.is_weak() { self.arena.index(address) } else { None }
    }

    /// The running place frees the object at a word: what others have done to it must be known to come before.
    #[cold]
    pub(crate) fn free_weakly(&self, word: usize, addr: Addr, at: &'static Location<'static>) {
        let me = self.state.borrow().running;
        let unordered = self.weak.borrow_mut().free(me, word);
        let Some(Unordered { place, hardware }) = unordered else { return };
        let (kind, title, action, what) = if hardware {
            let title = "hardware-reaches-freed-table";
            (Kind::HardwareReaches, title, "Unordered free of table", "page walks by")
        } else {
            (Kind::Dereferences, "use-after-free", "Unordered free of object", "accesses by")
        };
        self.write_report(Title::Rule { title, action }, addr, at);
        self.fail(kind, format!("{what} cpu{place} are not ordered before the free of {}", self.name_of_addr(addr)));
    }
}

/// How many newer stores there are, in words.
fn newer(age: u8) -> String {
    match age {
        0 => String::new(),
        1 => ", though there is a newer store".into(),
        _ => format!(", though there are {age} newer stores"),
    }
}

/// The ages of so many stores.
fn ages(readable: u8) -> Vec<u8> {
    (0..readable).collect()
}
