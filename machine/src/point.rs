//! Choice points: who goes next.
//!
//! Before each step a task lets others go first, if the policy says so. What needs no coroutine, a store on its way to
//! memory, happens here at once; for all else the stack is left.

use crate::machine::{Machine, MemoryModel, Quiet};
use crate::mix::fold;
use crate::policy::{Pick, Policy};
use crate::schedule::Event;
use crate::state::{Action, End, Next, State};
use crate::step::sort;
use crate::symmetry::Order as Naming;
use crate::verdict::{Kind, Verdict};

/// All values that can be picked.
static PICKS: [Action; u8::MAX as usize] = {
    let mut picks = [Action::Pick(0); u8::MAX as usize];
    let mut value = 0;
    while value < u8::MAX {
        picks[value as usize] = Action::Pick(value);
        value += 1;
    }
    picks
};

impl Machine {
    /// Lets others go first, if the policy says so, and returns when the running task may do its `next` step.
    ///
    /// Inlined with all that lies between here and the switch of stacks: a processor predicts returns by the calls it
    /// has seen, and after a switch each return goes somewhere else.
    #[inline(always)]
    pub(crate) fn point(&self, next: Next) {
        if self.granted.replace(false) && !matches!(next, Next::Wait | Next::Stop) {
            self.state.borrow_mut().fused = None;
            return;
        }
        loop {
            debug_assert!(self.quiet.get() == Quiet::No, "nobody may go before {next:?}, which is to be quiet");
            let mut state = self.state.borrow_mut();
            let me = state.running;
            state.announce(next);
            state.points += 1;
            if state.fuses(self.config.memory == MemoryModel::Tso) || self.policy.borrow().passes(state.points) {
                return self.count_step(state);
            }
            let Some(action) = self.pick(&mut state) else {
                drop(state);
                self.suspend_for_ever()
            };
            state.action = action;
            let mine = action != Action::Drain(me as u8) && action.place() == me;
            if self.asks_for_snapshot(&state) || !mine {
                drop(state);
                self.suspend();
                state = self.state.borrow_mut();
            }
            let action = state.action;
            if matches!(action, Action::Step(_)) {
                state.has_stepped();
                return self.count_step(state);
            }
            drop(state);
            self.interrupt(action);
        }
    }

    /// A stack begins to run. If its place was picked to start, that is one with the task's first step: nobody can
    /// notice a start.
    pub(crate) fn start(&self) {
        let state = self.state.borrow();
        if state.places[state.running].next != Next::Start {
            return;
        }
        let action = state.action;
        drop(state);
        if matches!(action, Action::Step(_)) {
            self.count_step(self.state.borrow_mut());
        } else {
            self.interrupt(action);
            self.point(Next::Start);
        }
        self.granted.set(true);
    }

    /// Picks what happens next, doing what needs no coroutine at once. `None` if the execution is over.
    #[inline]
    pub(crate) fn pick(&self, state: &mut State) -> Option<Action> {
        if let Policy::Random(rng) = &mut *self.policy.borrow_mut() {
            return self.pick_at_random(state, rng);
        }
        self.pick_from_list(state)
    }

    /// What tells states apart where things have these names.
    pub(crate) fn key(&self, state: &State, order: &Naming) -> u64 {
        // Where things are alike, the arena knows which objects are allocated.
        let objects = if self.arena.names().is_empty() { self.kasan.borrow().state_hash() } else { 0 };
        let key = fold(fold(self.arena.hash(order), objects), state.hash(&self.arena, order));
        if self.is_weak() { fold(key, self.weak.borrow_mut().hash(state, |v| self.arena.portable(v))) } else { key }
    }

    fn pick_from_list(&self, state: &mut State) -> Option<Action> {
        let mut actions = self.actions.take();
        let picked = loop {
            state.actions(&mut actions);
            if actions.is_empty() {
                self.all_wait(state);
                break None;
            }
            let key = || self.state_key(state, false);
            let point = state.points;
            let pick = {
                let mut policy = self.policy.borrow_mut();
                // A loop that is come back to is compared with what was seen even if nobody else can go.
                let loops = state.places[state.running].next == Next::Checkpoint;
                let forced = actions.len() == 1 && actions[0] == Action::Step(state.running as u8) && !loops;
                // A replay is asked all the same: it counts.
                if forced && !matches!(&*policy, Policy::Replay(_)) {
                    Pick::Act(actions[0])
                } else {
                    policy.pick(point, &actions, state.running, key)
                }
            };
            match pick {
                Pick::Act(Action::Drain(place)) => {
                    self.drain(state, usize::from(place));
                    state.points += 1;
                }
                Pick::Act(action) => break Some(action),
                Pick::Prune => {
                    state.end = Some(End::Pruned);
                    break None;
                }
                Pick::Stale => {
                    let ended = matches!(&*self.policy.borrow(), Policy::Replay(cursor) if cursor.is_at_end());
                    self.stale.set(Some(if ended {
                        "the schedule ends before the execution does"
                    } else {
                        "a step of the schedule cannot happen here"
                    }));
                    state.end = Some(End::Stale);
                    break None;
                }
            }
        };
        self.actions.set(actions);
        picked
    }

    /// As [`pick`](Self::pick), where nobody needs the list of what could happen.
    #[inline]
    fn pick_at_random(&self, state: &mut State, rng: &mut fastrand::Rng) -> Option<Action> {
        loop {
            let ready = state.ready();
            let count = ready.count();
            if count == 0 {
                self.all_wait(state);
                return None;
            }
            // A fraction of the count: the bias of one in 2^32 is nobody's concern.
            let index = (u64::from(rng.u32(..)) * u64::from(count)) >> 32;
            match state.action(ready, index as u32) {
                Action::Drain(place) => {
                    self.drain(state, usize::from(place));
                    state.points += 1;
                }
                action => return Some(action),
            }
        }
    }

    /// Nothing can happen any more: the end, or a deadlock.
    fn all_wait(&self, state: &mut State) {
        let waits = |place: &&crate::state::Place| matches!(place.next, Next::Wait);
        let who: Vec<&str> = state.places.iter().filter(waits).map(|place| &*state.tasks[place.task].name).collect();
        if !who.is_empty() {
            let message = format!("{} wait for ever", who.join(", "));
            state.verdicts.push(Verdict { kind: Kind::Deadlock, message });
            state.end = Some(End::Error);
        } else {
            state.end = Some(End::Complete);
        }
    }

    #[inline(always)]
    fn count_step(&self, mut state: core::cell::RefMut<'_, State>) {
        state.steps += 1;
        let me = state.running as u8;
        self.record.borrow_mut().push(Event::Did(Action::Step(me)));
        if state.steps > self.config.max_steps {
            drop(state);
            self.fail(Kind::TooLong, format!("more than {} steps: it may never end", self.config.max_steps));
        }
    }

    /// The oldest buffered store of a CPU reaches memory.
    pub(crate) fn drain(&self, state: &mut State, place: usize) {
        self.record.borrow_mut().push(Event::Did(Action::Drain(place as u8)));
        let Some((word, value)) = state.unbuffer(place) else { return };
        self.commit(state, word, value);
        if self.recording.get() {
            let what = format!("{} = {} reaches memory", self.name_of(word), self.show(value));
            self.log_line(state, place, what);
        }
    }

    /// One of the values `0..n`, all of which are explored.
    ///
    /// # Panics
    /// If there are none, or more than 255.
    pub fn choose(&self, n: u8) -> u8 {
        assert!(n > 0, "one of none cannot be chosen");
        let mut state = self.state.borrow_mut();
        state.points += 1;
        let me = state.running as u8;
        let mut policy = self.policy.borrow_mut();
        let picked = if let Policy::Replay(cursor) = &mut *policy {
            cursor.next_pick().filter(|&(place, value)| place == me && value < n).map(|(_, value)| value)
        } else if n == 1 {
            Some(0)
        } else {
            let key = || self.state_key(&state, true);
            match policy.pick(state.points, &PICKS[..usize::from(n)], state.running, key) {
                Pick::Act(Action::Pick(value)) => Some(value),
                _ => {
                    state.end = Some(End::Pruned);
                    drop((state, policy));
                    self.suspend_for_ever()
                }
            }
        };
        drop(policy);
        let Some(value) = picked else {
            state.end = Some(End::Stale);
            drop(state);
            self.suspend_for_ever()
        };
        self.record.borrow_mut().push(Event::Picked(me, value));
        state.observe(sort::PICK, u64::from(value));
        value
    }
}
