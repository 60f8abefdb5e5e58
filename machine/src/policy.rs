//! Policies: who goes next.
//!
//! | policy | picks | after |
//! | --- | --- | --- |
//! | exhaustive | every alternative in turn, depth first, by running again from the start | stateless search with state hashing |
//! | bounded | the same, with at most so many preemptions | CHESS (Musuvathi and Qadeer, 2007) |
//! | random | uniformly, from a seed | |
//! | PCT | by random priorities that change at random steps | Burckhardt, Kothari, Musuvathi, Nagarakatte, ASPLOS 2010 |
//! | replay | what the schedule says | |
//!
//! A policy is asked inside the running coroutine, so a step that it gives to the same place costs no switch of stacks.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use crate::mix::fold;
use crate::schedule::Cursor;
use crate::state::Action;

/// The keys are hashes already.
#[derive(Debug, Default)]
pub(crate) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64")
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// What tells a state apart, and how many there are that it stands for.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Key {
    pub(crate) hash: u64,
    pub(crate) stands_for: u64,
}

pub(crate) type Keys = HashSet<u64, BuildHasherDefault<AsIs>>;

/// What a policy says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pick {
    Act(Action),
    /// The state was seen before.
    Prune,
    /// The schedule does not fit.
    Stale,
}

/// Which state comes after which, and after which an execution has ended: it tells those from which none ends.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// The later one first.
    steps: Vec<(u64, u64)>,
    ends: Keys,
}

impl Graph {
    /// The states from which no execution ends, when all has been explored.
    fn endless(mut self) -> Keys {
        self.steps.sort_unstable();
        let mut end = self.ends;
        let mut to_do: Vec<u64> = end.iter().copied().collect();
        while let Some(state) = to_do.pop() {
            let first = self.steps.partition_point(|&(later, _)| later < state);
            let before = self.steps[first..].iter().take_while(|&&(later, _)| later == state);
            to_do.extend(before.filter(|&&(_, earlier)| end.insert(earlier)).map(|&(_, earlier)| earlier));
        }
        self.steps
            .into_iter()
            .flat_map(|(later, earlier)| [later, earlier])
            .filter(|state| !end.contains(state))
            .collect()
    }
}

/// A choice that the search has made and may make differently.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// The state in which it was made, or the last before it that was compared.
    state: u64,
    /// The point at which it was made.
    at: u64,
    /// Its alternatives, in the common list.
    first: u32,
    count: u32,
    chosen: u32,
    /// Preemptions left when it was made.
    budget: u32,
}

/// Depth-first search over choices.
#[derive(Debug, Default)]
pub(crate) struct Dfs {
    nodes: Vec<Node>,
    alternatives: Vec<Action>,
    depth: usize,
    budget: u32,
    pub(crate) bound: Option<u32>,
    /// Whether the bound has cut something off.
    pub(crate) cut: bool,
    pub(crate) seen: Option<Keys>,
    /// Kept if it is to be known whether all executions end.
    graph: Option<Graph>,
    /// States from which no execution ends: whoever comes to one goes on for ever, and the search with it.
    endless: Keys,
    /// This execution has come to one.
    goes_on: bool,
    /// How many states those that were seen stand for.
    pub(crate) stand_for: u64,
    pub(crate) deepest: usize,
}

impl Dfs {
    pub(crate) fn new(bound: Option<u32>, prune: bool) -> Dfs {
        Dfs { bound, budget: bound.unwrap_or(0), seen: prune.then(Keys::default), ..Dfs::default() }
    }

    /// Whether it is to be known that all executions end.
    pub(crate) fn with_graph(self, kept: bool) -> Dfs {
        Dfs { graph: kept.then(Graph::default), ..self }
    }

    /// An execution has ended, or may have, after the choice that was made last.
    pub(crate) fn has_ended(&mut self) {
        let last = self.last_state();
        if let Some(graph) = &mut self.graph {
            graph.ends.insert(last);
        }
    }

    /// When all has been explored: a search for an execution that goes on for ever, if there is one.
    pub(crate) fn for_ever(&mut self) -> Option<Dfs> {
        let endless = self.graph.take()?.endless();
        (!endless.is_empty()).then(|| Dfs { endless, ..Dfs::new(self.bound, true) })
    }

    fn last_state(&self) -> u64 {
        self.nodes.last().map_or(0, |node| node.state)
    }

    pub(crate) fn states(&self) -> usize {
        self.seen.as_ref().map_or(0, HashSet::len)
    }

    /// Whether the running place goes on at this point, as it did when the choices so far were made first.
    #[inline]
    pub(crate) fn passes(&self, point: u64) -> bool {
        self.nodes.get(self.depth).is_some_and(|node| point < node.at)
    }

    fn pick(&mut self, point: u64, actions: &[Action], running: usize, key: impl FnOnce() -> Key) -> Pick {
        if let Some(node) = self.nodes.get(self.depth) {
            debug_assert_eq!(node.at, point, "the same choices come to the same points");
            self.depth += 1;
            let index = node.first + node.chosen;
            self.budget = node.budget - u32::from(self.bound.is_some() && self.preempts(node, index, running));
            return Pick::Act(self.alternatives[index as usize]);
        }
        if self.goes_on {
            return Pick::Act(actions[0]);
        }
        let mut state = self.last_state();
        // Where there is no choice, nothing is cut off by going on; but a loop must be recognised.
        let loops = actions.len() == 1 && actions[0] == Action::Step(running as u8);
        // What a load reads is chosen in the middle of a step, and the state before it was compared already.
        let reads = matches!(actions[0], Action::Read(_));
        if (actions.len() > 1 || loops)
            && !reads
            && let Some(seen) = &mut self.seen
        {
            let Key { hash, stands_for } = key();
            let before = core::mem::replace(&mut state, fold(hash, u64::from(self.budget)));
            if let Some(graph) = &mut self.graph {
                graph.steps.push((state, before));
            }
            if !seen.insert(state) {
                return Pick::Prune;
            }
            self.stand_for += stands_for;
            self.goes_on = self.endless.contains(&state);
        }
        let first = self.alternatives.len();
        self.alternatives.extend_from_slice(actions);
        let goes_on = reads || actions[0] == Action::Step(running as u8);
        if self.bound.is_some() && self.budget == 0 && goes_on && actions.len() > 1 {
            self.alternatives.truncate(first + 1);
            self.cut = true;
        }
        let count = (self.alternatives.len() - first) as u32;
        let node = Node { state, at: point, first: first as u32, count, chosen: 0, budget: self.budget };
        self.nodes.push(node);
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
        Pick::Act(actions[0])
    }

    /// Whether an alternative takes the CPU from a place that could have gone on, or has it read what is not the newest.
    fn preempts(&self, node: &Node, index: u32, running: usize) -> bool {
        let first = self.alternatives[node.first as usize];
        let could_go_on = first == Action::Step(running as u8) || matches!(first, Action::Read(_));
        could_go_on && index != node.first && !matches!(self.alternatives[index as usize], Action::Pick(_))
    }

    /// The choice that was made last, if that was at this point and it is new: there is more than one alternative.
    #[inline]
    pub(crate) fn has_just_chosen(&self, point: u64) -> Option<usize> {
        let last = self.nodes.last().filter(|_| self.depth == self.nodes.len())?;
        (last.at == point && last.chosen == 0 && last.count > 1).then(|| self.nodes.len() - 1)
    }

    /// The first choice that will be made differently, if it is not the first execution.
    pub(crate) fn differs_at(&self) -> Option<usize> {
        self.nodes.len().checked_sub(1)
    }

    /// The next execution begins where choice `node` is to be made, and those before are made.
    pub(crate) fn go_on_at(&mut self, node: usize) {
        self.depth = node;
    }

    /// Prepares the next execution; says whether there is one.
    pub(crate) fn advance(&mut self) -> bool {
        self.depth = 0;
        self.goes_on = false;
        self.budget = self.bound.unwrap_or(0);
        while let Some(node) = self.nodes.last_mut() {
            node.chosen += 1;
            if node.chosen < node.count {
                return true;
            }
            let first = node.first as usize;
            self.alternatives.truncate(first);
            self.nodes.pop();
        }
        false
    }

    /// Forgets everything but what it was made with.
    pub(crate) fn restart(&mut self) {
        *self = Dfs::new(self.bound, self.seen.is_some()).with_graph(self.graph.is_some());
    }
}

/// Random priorities, changed at random points.
#[derive(Debug)]
pub(crate) struct Pct {
    rng: fastrand::Rng,
    /// One for each place and for each place's drains and interrupts.
    priorities: Vec<u64>,
    /// The points at which the one that would go on falls behind all others.
    changes: Vec<u64>,
    lowest: u64,
}

impl Pct {
    /// `depth` counts the ordering constraints of the bug that is looked for; `length` is how long executions are.
    pub(crate) fn new(seed: u64, depth: u32, length: u64, places: usize) -> Pct {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut priorities: Vec<u64> = (0..3 * places as u64).map(|priority| priority + 1000).collect();
        rng.shuffle(&mut priorities);
        let changes = (1..depth).map(|_| rng.u64(1..=length.max(1))).collect();
        Pct { rng, priorities, changes, lowest: 1000 }
    }

    fn slot(action: Action) -> usize {
        match action {
            Action::Step(place) | Action::Pick(place) | Action::Read(place) => 3 * usize::from(place),
            Action::Irq(place, _) | Action::Nmi(place, _) => 3 * usize::from(place) + 1,
            Action::Drain(place) => 3 * usize::from(place) + 2,
        }
    }

    fn pick(&mut self, point: u64, actions: &[Action]) -> Pick {
        if let Action::Pick(_) | Action::Read(_) = actions[0] {
            return Pick::Act(actions[self.rng.usize(..actions.len())]);
        }
        let highest = |priorities: &[u64]| {
            *actions.iter().max_by_key(|&&action| priorities[Self::slot(action)]).expect("there is something to do")
        };
        if self.changes.contains(&point) {
            let falls = Self::slot(highest(&self.priorities));
            self.lowest -= 1;
            self.priorities[falls] = self.lowest;
        }
        Pick::Act(highest(&self.priorities))
    }
}

/// The policy of a run.
#[derive(Debug)]
pub(crate) enum Policy {
    Dfs(Dfs),
    Random(fastrand::Rng),
    Pct(Pct),
    Replay(Cursor),
}

impl Policy {
    /// Who goes next. `actions` is not empty.
    pub(crate) fn pick(&mut self, point: u64, actions: &[Action], running: usize, key: impl FnOnce() -> Key) -> Pick {
        match self {
            Policy::Dfs(dfs) => dfs.pick(point, actions, running, key),
            Policy::Random(rng) => Pick::Act(actions[rng.usize(..actions.len())]),
            Policy::Pct(pct) => pct.pick(point, actions),
            Policy::Replay(cursor) => match cursor.next() {
                Some(action) if actions.contains(&action) => Pick::Act(action),
                _ => Pick::Stale,
            },
        }
    }

    /// Whether the running place goes on without being asked.
    #[inline]
    pub(crate) fn passes(&self, point: u64) -> bool {
        match self {
            Policy::Dfs(dfs) => dfs.passes(point),
            _ => false,
        }
    }
}
