//! Snapshots: an execution at a choice, so that a search that makes the choice differently need not run again what comes
//! before it.
//!
//! A depth-first search changes the last choice that it can, so what it runs again from the start is nearly all of an
//! execution, and where tasks go on for ever executions are long. A snapshot is taken at a choice with more than one
//! alternative, once in a while, while all tasks are suspended. It is everything that an execution is: memory by what was
//! changed since, objects, stacks, places and tasks, the schedule so far.

use core::cell::{Cell, RefCell};
use std::rc::Rc;

use lazytlb_kasan as kasan;

use crate::machine::{Machine, Quiet};
use crate::policy::Policy;
use crate::stacks::Image;
use crate::state::State;
use crate::{arena, schedule, state, weak};

/// So many steps lie between two snapshots at least: to run them again costs what a snapshot costs.
const STEPS: u64 = 12;

/// When there are so many, every second one of the older half is given up. What lies between two is run again only when the
/// search comes back to it.
const MANY: usize = 20_000;

#[derive(Debug)]
struct Snapshot {
    /// The choice that is about to be made.
    node: usize,
    memory: arena::Mark,
    objects: Rc<kasan::Saved>,
    state: state::Saved,
    /// Histories and views, where memory has them.
    past: Option<weak::Past>,
    happened: schedule::Mark,
    stacks: Vec<Option<Rc<Image>>>,
}

/// The snapshots along the execution that was last.
#[derive(Default)]
pub(crate) struct Snapshots {
    taken: RefCell<Vec<Snapshot>>,
    /// Of snapshots that are not needed any more: memory for the next ones.
    spare: RefCell<Vec<state::Saved>>,
    /// After so many steps the next one is due. Zero if none are taken.
    due: Cell<u64>,
    /// The choice for which the running task asks for one.
    asked: Cell<Option<usize>>,
    /// The steps of the execution that were not run, but gone back to.
    pub(crate) skipped: Cell<u64>,
}

impl Machine {
    /// Snapshots are taken from now on, or no longer.
    pub(crate) fn set_snapshots(&self, on: bool) {
        self.snapshots.taken.borrow_mut().clear();
        self.snapshots.spare.borrow_mut().clear();
        self.snapshots.due.set(if on { STEPS } else { 0 });
    }

    /// Whether an execution that has ended may be gone back into.
    pub(crate) fn takes_snapshots(&self) -> bool {
        self.snapshots.due.get() != 0
    }

    /// Whether the choice that was just made, at this point, is to be gone back to. The running task suspends then, whoever
    /// goes on.
    #[inline]
    pub(crate) fn asks_for_snapshot(&self, state: &State) -> bool {
        if !self.takes_snapshots() || state.steps < self.snapshots.due.get() {
            return false;
        }
        let Policy::Dfs(dfs) = &*self.policy.borrow() else { return false };
        let node = dfs.has_just_chosen(state.points);
        self.snapshots.asked.set(node);
        node.is_some()
    }

    /// Takes a snapshot if the task that has suspended asks for one.
    #[inline]
    pub(crate) fn take_snapshot_if_asked(&self) {
        if let Some(node) = self.snapshots.asked.take() {
            self.take_snapshot(node);
        }
    }

    fn take_snapshot(&self, node: usize) {
        debug_assert!(self.quiet.get() == Quiet::No, "a choice is between steps");
        let mut taken = self.snapshots.taken.borrow_mut();
        let kasan = self.kasan.borrow();
        let before = taken.last().map(|last| &last.objects).filter(|objects| objects.version() == kasan.version());
        let objects = before.cloned().unwrap_or_else(|| Rc::new(kasan.save()));
        let spare = self.snapshots.spare.borrow_mut().pop();
        let state = self.state.borrow().save(spare.unwrap_or_default());
        self.snapshots.due.set(state.steps + STEPS);
        if taken.len() >= MANY {
            let mut index = 0;
            taken.retain(|_| {
                index += 1;
                index > MANY / 2 || index % 2 == 0
            });
        }
        taken.push(Snapshot {
            node,
            memory: self.arena.mark(),
            objects,
            state,
            past: self.is_weak().then(|| self.weak.borrow().past().clone()),
            happened: self.record.borrow().mark(),
            stacks: self.stacks.save(),
        });
    }

    /// Makes the state that of the last snapshot before the choice that the search will make differently. Says whether
    /// there is one.
    pub(crate) fn go_back(&self) -> bool {
        self.snapshots.skipped.set(0);
        if !self.takes_snapshots() {
            return false;
        }
        self.snapshots.due.set(STEPS);
        let mut policy = self.policy.borrow_mut();
        let Policy::Dfs(dfs) = &mut *policy else { return false };
        let mut taken = self.snapshots.taken.borrow_mut();
        let differs_at = dfs.differs_at();
        while taken.last().is_some_and(|last| differs_at.is_none_or(|node| last.node > node)) {
            self.snapshots.spare.borrow_mut().extend(taken.pop().map(|last| last.state));
        }
        let Some(snapshot) = taken.last() else { return false };
        dfs.go_on_at(snapshot.node);
        self.arena.go_back(&snapshot.memory);
        self.kasan.borrow_mut().restore(&snapshot.objects);
        self.state.borrow_mut().restore(&snapshot.state);
        if let Some(past) = &snapshot.past {
            self.weak.borrow_mut().go_back(past.clone());
        }
        self.record.borrow_mut().go_back(snapshot.happened);
        self.stacks.restore(&snapshot.stacks);
        self.switching.set(false);
        self.granted.set(false);
        self.snapshots.skipped.set(snapshot.state.steps);
        self.snapshots.due.set(snapshot.state.steps + STEPS);
        true
    }
}
