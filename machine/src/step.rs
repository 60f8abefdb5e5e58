//! Steps: what a simulated program does to the machine, one indivisible thing after the other.
//!
//! Each step has two halves. First the place announces what it is about to do and others may go before it (the choice
//! point, `point.rs`). Then, at once, the step itself, its check against the shadow included: a check that came before the
//! choice would let the object die in between unnoticed.
//!
//! Memory models differ in what happens to a store. Under SC it reaches memory at once. Under TSO it enters the CPU's own
//! buffer, loads look there first, and its way to memory is an action of the machine (x86-TSO: Sewell, Sarkar, Owens,
//! Nardelli, Myreen, CACM 2010). Full barriers, locked instructions, sending and taking an interrupt, and entering the
//! allocator find the buffer drained. The third model, where a load may read an older store, is in `weak.rs`, and its steps
//! are in `weak_step.rs`.

use core::panic::Location;

use lazytlb_core::memory::{At, Label, Ordering};
use lazytlb_kasan::{Access, BadAccess, BugType};

use crate::machine::{Machine, MemoryModel, Quiet};
use crate::state::{Call, End, Next, State};
use crate::verdict::{Kind, Verdict};

/// How an access is ordered, with its label and whether the word is local.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) at: At,
    pub(crate) local: bool,
    /// How a compare-and-exchange that fails is ordered.
    pub(crate) failure: Ordering,
    /// Whether full fences stand before and after.
    pub(crate) full: bool,
}

impl Order {
    pub(crate) const LOCAL: Order = Order {
        at: At { order: Ordering::Relaxed, label: Label::NONE },
        local: true,
        failure: Ordering::Relaxed,
        full: false,
    };

    #[inline]
    pub(crate) fn of(at: impl Into<At>) -> Order {
        let at = at.into();
        assert!(at.order != Ordering::SeqCst, "no SeqCst accesses: write a fence, or use a `_full` operation");
        Order { at, local: false, failure: Ordering::Relaxed, full: false }
    }

    #[inline]
    pub(crate) fn full(label: Label) -> Order {
        let at = At { order: Ordering::AcqRel, label };
        Order { at, local: false, failure: Ordering::Relaxed, full: true }
    }
}

/// Which read-modify-write it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rmw {
    Swap,
    CompareExchange,
    Fetch,
}

impl core::fmt::Display for Rmw {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Rmw::Swap => "swap",
            Rmw::CompareExchange => "compare_exchange",
            Rmw::Fetch => "rmw",
        })
    }
}

/// Sorts of steps, for the history: different steps never look alike.
pub(crate) mod sort {
    /// Gives each a number of its own.
    macro_rules! sorts {
        ($($sort:ident)*) => {
            #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "they are names of constants")]
            enum Number { $($sort,)* KINDS }
            $(pub(crate) const $sort: u64 = Number::$sort as u64;)*
            /// How many there are.
            pub(crate) const KINDS: u64 = Number::KINDS as u64;
        };
    }

    sorts! {
        VALUE LOAD STORE RMW FENCE IRQ_OFF IRQ_ON IPI HEAP HINT WAIT SWITCH PICK HANDLER DONE STOP CHECKPOINT QUESTION OUTCOME
        PREEMPT_OFF
    }
}

impl Machine {
    /// The index of a word of the running program.
    #[inline]
    fn index(&self, address: usize, at: &'static Location<'static>) -> usize {
        match self.arena.index(address) {
            Some(index) => index,
            None => panic!("{at}: a simulated word outside the arena of the machine that runs"),
        }
    }

    #[inline]
    pub(crate) fn commit(&self, state: &mut State, word: usize, value: u64) {
        if self.arena.write(word, value) {
            state.changed(word);
        }
    }

    /// Checks an access against the shadow; ends the execution if it is bad.
    #[inline]
    pub(crate) fn check(&self, word: usize, access: Access, at: &'static Location<'static>) {
        let checked = self.kasan.borrow().check(self.addr_of(word), crate::arena::WORD, access);
        if let Err(bad) = checked {
            self.bad_access(bad, at);
        }
    }

    #[cold]
    fn bad_access(&self, bad: BadAccess, at: &'static Location<'static>) {
        let kind = if bad.bug == BugType::UseAfterFree { Kind::Dereferences } else { Kind::OutOfBounds };
        let word = self.arena_word(bad.addr);
        let message = format!(
            "{} of {} in {}",
            bad.access,
            word.map_or_else(|| bad.addr.to_string(), |word| self.name_of(word)),
            self.function()
        );
        let title = lazytlb_kasan::Title::Access { bug: bad.bug, access: bad.access, size: bad.size };
        self.write_report(title, bad.addr, at);
        self.fail(kind, message);
    }

    /// Checks one byte, as KASAN's `kasan_check_byte`: a step that reads and does nothing with what it read.
    pub fn check_byte(&self, address: usize, at: &'static Location<'static>) {
        let Some(word) = self.arena.index(address) else { return };
        self.load_step(word);
        self.check(word, Access::Read, at);
    }

    /// A load of which the program does not get the value: others can go before it, and that it reads the word is known.
    pub(crate) fn load_step(&self, word: usize) {
        self.point(Next::Load { word, local: false });
        let mut state = self.state.borrow_mut();
        let who = state.who();
        state.summary.read(word, who);
        state.observe_word(sort::LOAD, word, 0, &self.arena);
    }

    #[inline]
    pub(crate) fn load(&self, address: usize, order: Order, at: &'static Location<'static>) -> usize {
        let word = self.index(address, at);
        if self.quiet.get() != Quiet::No {
            return self.load_quietly(word);
        }
        if self.unusual {
            // The label is met, though only `weak` gives a load's order a meaning.
            self.is_relaxed(order.at.label);
            if self.is_weak() {
                return self.load_weakly(word, order, at) as usize;
            }
        }
        self.point(Next::Load { word, local: order.local });
        self.check(word, Access::Read, at);
        let value = {
            let mut state = self.state.borrow_mut();
            let forwarded =
                state.me().buffer.iter().rev().find(|&&(stored, _)| stored == word).map(|&(_, value)| value);
            let value = forwarded.unwrap_or_else(|| self.arena.read(word));
            let who = state.who();
            state.summary.read(word, who);
            state.watch(word);
            state.observe_word(sort::LOAD, word, value, &self.arena);
            value
        };
        self.trace(|name| format!("load {name} -> {}", self.show(value)), word, order);
        self.tell_load(word);
        value as usize
    }

    #[cold]
    fn load_quietly(&self, word: usize) -> usize {
        match self.quiet.get() {
            Quiet::Inspecting => self.state.borrow_mut().inspects(word),
            Quiet::Own => return self.own_view(word) as usize,
            Quiet::Unnoticed | Quiet::No => {}
        }
        self.arena.read(word) as usize
    }

    /// What the running CPU reads if it reads what it stored last.
    #[cold]
    pub(crate) fn own_view(&self, word: usize) -> u64 {
        let mut state = self.state.borrow_mut();
        let forwarded = state.me().buffer.iter().rev().find(|&&(stored, _)| stored == word).map(|&(_, value)| value);
        forwarded.unwrap_or_else(|| self.arena.read(word))
    }

    #[inline]
    pub(crate) fn store(&self, address: usize, value: usize, order: Order, at: &'static Location<'static>) {
        let word = self.index(address, at);
        if self.quiet.get() != Quiet::No {
            if self.is_weak() {
                return self.store_quietly(word, value as u64, order.local, false);
            }
            return self.commit(&mut self.state.borrow_mut(), word, value as u64);
        }
        if self.unusual {
            self.is_relaxed(order.at.label);
            if self.is_dropped(order.at.label) {
                return;
            }
            if self.is_weak() {
                return self.store_weakly(word, value as u64, order, at);
            }
        }
        self.point(Next::Store { word, local: order.local });
        self.check(word, Access::Write, at);
        let before = self.watched_before(word);
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            let who = state.who();
            state.summary.write(word, who);
            state.observe_word(sort::STORE, word, value as u64, &self.arena);
            let me = state.running;
            if self.config.memory == MemoryModel::Tso && !order.local && !state.places[me].agent {
                state.buffer(word, value as u64, self.config.store_buffer);
                self.drain_private(state, me);
            } else {
                self.commit(state, word, value as u64);
            }
        }
        self.trace(|name| format!("store {name} = {}", self.show(value as u64)), word, order);
        self.tell_store(word, before, value as u64);
    }

    /// Drains what only this CPU touches: nobody can tell when it reaches memory.
    fn drain_private(&self, state: &mut State, me: usize) {
        while state.summary.active
            && let Some(&(word, _)) = state.places[me].buffer.front()
            && state.summary.drains_at_once(word, me)
        {
            self.drain(state, me);
        }
    }

    #[inline]
    pub(crate) fn rmw(
        &self,
        address: usize,
        rmw: Rmw,
        order: Order,
        at: &'static Location<'static>,
        apply: &dyn Fn(usize) -> Option<usize>,
    ) -> usize {
        let word = self.index(address, at);
        if self.quiet.get() != Quiet::No {
            let old = self.arena.read(word);
            if let Some(new) = apply(old as usize) {
                if self.is_weak() {
                    self.store_quietly(word, new as u64, false, true);
                } else {
                    self.commit(&mut self.state.borrow_mut(), word, new as u64);
                }
            }
            return old as usize;
        }
        let mut dropped = false;
        if self.unusual {
            if self.is_weak() {
                return self.rmw_weakly(word, rmw, order, at, apply) as usize;
            }
            self.is_relaxed(order.at.label);
            dropped = self.is_dropped(order.at.label);
        }
        self.point(Next::Rmw { word });
        self.check(word, Access::Write, at);
        let old = {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            let old = self.arena.read(word);
            let new = if dropped { None } else { apply(old as usize) };
            let who = state.who();
            state.summary.read(word, who);
            state.watch(word);
            if let Some(new) = new {
                state.summary.write(word, who);
                self.commit(state, word, new as u64);
            }
            state.observe_word(sort::RMW + ((rmw as u64) << 60), word, old, &self.arena);
            old
        };
        let now = self.arena.read(word);
        self.trace(|name| format!("{rmw} {name}: {} -> {}", self.show(old), self.show(now)), word, order);
        self.tell_store(word, self.watched(word).then_some(old), now);
        old as usize
    }

    pub(crate) fn fence(&self, at: At) {
        if self.quiet.get() != Quiet::No {
            return;
        }
        if self.unusual {
            if self.is_dropped(at.label) || self.is_relaxed(at.label) {
                return;
            }
            if self.is_weak() {
                return self.fence_weakly(at);
            }
        }
        if at.order != Ordering::SeqCst {
            // Acquire and release fences order nothing that TSO does not order already.
            return;
        }
        self.point(Next::Fence);
        self.state.borrow_mut().observe(sort::FENCE, 0);
        self.note(|| format!("fence {:?}", at.label));
    }

    pub(crate) fn spin_hint(&self) {
        let blocked = {
            let mut state = self.state.borrow_mut();
            let task = state.current();
            let blocked = task.wait.watching && !task.wait.dirty && !task.wait.stale;
            task.wait.watching = true;
            // Who has polled in vain with an old store reads the newest next: a loop that never does has no end.
            task.wait.newest = core::mem::take(&mut task.wait.stale);
            blocked
        };
        self.point(if blocked { Next::Wait } else { Next::Yield });
        let mut state = self.state.borrow_mut();
        let task = state.current();
        task.wait.dirty = false;
        task.wait.reads.clear();
        state.observe(sort::HINT, 0);
    }

    /// A wait loop begins a round: what it reads from here on is what it waits for.
    pub(crate) fn begin_round(&self) {
        let mut state = self.state.borrow_mut();
        let task = state.current();
        task.wait.round_start = task.history;
        task.wait.watching = true;
        task.wait.dirty = false;
        task.wait.stale = false;
        task.wait.reads.clear();
        if self.is_weak() {
            let (me, task) = (state.running, state.places[state.running].task);
            self.weak.borrow_mut().begin_round(me, task);
        }
    }

    /// The round is over. If it was not the last, the task forgets it and waits for a change.
    pub(crate) fn end_round(&self, ready: bool) {
        {
            let mut state = self.state.borrow_mut();
            let (me, id) = (state.running, state.places[state.running].task);
            let task = &mut state.tasks[id];
            if ready {
                task.wait.watching = false;
                task.wait.stale = false;
                task.wait.newest = false;
                task.wait.reads.clear();
                if self.is_weak() {
                    self.weak.borrow_mut().end_round(me, id, false);
                }
                return;
            }
            task.history = task.wait.round_start;
            task.history.see(sort::WAIT, 0);
        }
        let again = self.is_weak() && self.round_has_failed();
        self.point(if again { Next::Yield } else { Next::Wait });
        let mut state = self.state.borrow_mut();
        let task = state.current();
        task.wait.watching = false;
        task.history = task.wait.round_start;
    }

    /// Runs `f` as one step of hardware, an agent's or that of the running task's CPU, which is no choice of its own: it
    /// may look at words by [`look`](Self::look) and write its own by [`SimLocal::poke`](crate::SimLocal::poke).
    pub fn agent_step<R>(&self, f: impl FnOnce() -> R) -> R {
        self.point(Next::Yield);
        self.state.borrow_mut().observe(sort::HINT, 0);
        f()
    }

    /// Reads a word as part of the step that is under way, from memory and without asking whether it may be read.
    pub fn look<T: crate::word::Bits>(&self, word: &crate::word::SimWord<T>) -> T {
        if let Some(index) = self.arena.index(core::ptr::from_ref(word).addr()) {
            if self.is_weak() {
                return T::from_bits(self.look_weakly(index) as usize);
            }
            let mut state = self.state.borrow_mut();
            let who = state.who();
            state.summary.read(index, who);
            state.observe_word(sort::LOAD, index, self.arena.read(index), &self.arena);
            state.watch(index);
        }
        word.peek()
    }

    /// Writes a word as part of the step that is under way, straight to memory.
    #[track_caller]
    pub fn put<T: crate::word::Bits>(&self, word: &crate::word::SimWord<T>, value: T) {
        let index = self.index(core::ptr::from_ref(word).addr(), Location::caller());
        let value = value.to_bits() as u64;
        if self.is_weak() {
            return self.store_quietly(index, value, false, false);
        }
        let mut state = self.state.borrow_mut();
        let who = state.who();
        state.summary.write(index, who);
        state.observe_word(sort::STORE, index, value, &self.arena);
        self.commit(&mut state, index, value);
        drop(state);
        self.trace(|name| format!("store {name} = {}", self.show(value)), index, Order::LOCAL);
    }

    /// Reads and writes a word in one step, fully ordered, whatever [`choose`](Self::choose) says meanwhile: what a
    /// scheduler picks from its queue.
    #[track_caller]
    pub fn update<T: crate::word::Bits>(&self, word: &crate::word::SimWord<T>, f: impl FnOnce(T) -> T) {
        let index = self.index(core::ptr::from_ref(word).addr(), Location::caller());
        self.point(Next::Rmw { word: index });
        let old = self.arena.read(index);
        {
            let mut state = self.state.borrow_mut();
            let who = state.who();
            state.summary.read(index, who);
            state.summary.write(index, who);
            state.watch(index);
            state.observe_word(sort::RMW, index, old, &self.arena);
        }
        let new = f(T::from_bits(old as usize)).to_bits() as u64;
        self.commit(&mut self.state.borrow_mut(), index, new);
        self.trace(|name| format!("update {name}: {} -> {}", self.show(old), self.show(new)), index, Order::LOCAL);
    }

    /// The functions that the running task is in, as far as it has said so, the innermost last.
    pub fn frames(&self) -> Vec<&'static str> {
        self.state.borrow_mut().current().calls.iter().map(|call| call.function).collect()
    }

    pub(crate) fn heap_step(&self, words: core::ops::Range<usize>) {
        if self.quiet.get() == Quiet::No {
            self.point(Next::Heap);
        }
        let mut state = self.state.borrow_mut();
        let who = state.who();
        let first = words.start;
        state.summary.free(words, who);
        state.observe_word(sort::HEAP, first, 0, &self.arena);
    }

    /// Reports a verdict. An error ends the execution: the call does not return then.
    pub fn fail(&self, kind: Kind, message: impl Into<String>) {
        let verdict = Verdict { kind, message: message.into() };
        let mut state = self.state.borrow_mut();
        if kind.is_finding() {
            if !state.verdicts.contains(&verdict) {
                state.findings ^= verdict.hash();
                state.verdicts.push(verdict);
            }
            return;
        }
        state.verdicts.push(verdict);
        state.end = Some(End::Error);
        drop(state);
        if self.is_running() {
            self.suspend_for_ever()
        }
    }

    pub(crate) fn enter_call(&self, function: &'static str, at: &'static Location<'static>, irq: bool) {
        self.state.borrow_mut().current().calls.push(Call { function, at, irq });
    }

    pub(crate) fn leave_call(&self) {
        self.state.borrow_mut().current().calls.pop();
    }

    /// A function of the program begins, for call traces; `at` is where.
    #[inline]
    pub fn frame_enter(&self, function: &'static str, at: &'static Location<'static>) {
        self.enter_call(function, at, false);
    }

    /// It ends.
    #[inline]
    pub fn frame_leave(&self) {
        self.leave_call();
    }
}
