//! Searches: many executions under one policy, and what they found.
//!
//! The exhaustive search runs an execution, goes back to the last choice that it can make differently (`snapshot.rs`), and
//! runs on from there; it does not go on from a state that it has seen. The state of real code on real stacks is not
//! compared itself: a deterministic task's local state is a function of what it has observed, so memory, store buffers,
//! pending interrupts, the state of the allocator and a hash of each task's observations since its last checkpoint are a
//! sound key.

use core::time::Duration;
use std::collections::BTreeSet;
use std::time::Instant;

use crate::machine::Machine;
use crate::mix::fold;
use crate::policy::{Dfs, Keys, Pct, Policy};
use crate::record::LogLine;
use crate::schedule::{Schedule, ScheduleError};
use crate::state::End;
use crate::verdict::{Kind, Verdict};

/// How much the exhaustive search leaves out as equal to what it has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reduction {
    /// Nothing: every interleaving is run to its end.
    None,
    /// States that were seen before.
    States,
    /// States that were seen before, and choices that nobody can notice. It is checked that in states that are taken for one
    /// the same steps come next; if not, the program remembers what it says it does not, and panics.
    Named,
    /// Those, and states that differ from one that was seen only in which of several like things is which
    /// ([`Machine::alike`]).
    #[default]
    Full,
}

/// Which executions are run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Search {
    /// All of them.
    Exhaustive(Reduction),
    /// All with at most so many preemptions, interrupts and early drains.
    Bounded(u32),
    /// So many, each choice uniform.
    Random {
        /// Where the random numbers start.
        seed: u64,
        /// How many.
        executions: u64,
    },
    /// So many, by random priorities: finds a bug of `depth` ordering constraints with a known probability.
    Pct {
        /// Where the random numbers start.
        seed: u64,
        /// How many.
        executions: u64,
        /// How many constraints the bug needs; 1 to 3, mostly.
        depth: u32,
    },
}

/// When a search gives up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// After so many executions.
    pub executions: u64,
    /// After so long.
    pub time: Duration,
    /// At the first error, or only when all is explored.
    pub stop_at_first: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { executions: u64::MAX, time: Duration::MAX, stop_at_first: true }
    }
}

/// A verdict and how to see it again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// What.
    pub verdict: Verdict,
    /// The execution in which it was seen first.
    pub schedule: Schedule,
}

/// How an execution ended: its verdicts, and what the program declared as its outcome, if no error stopped it.
pub type Outcome = (BTreeSet<Verdict>, Vec<u64>);

/// What a search has done and found.
#[derive(Clone, Debug)]
pub struct Exploration {
    /// Whether every choice was exhausted. Never true for random searches, nor where a bound or a limit cut off.
    pub complete: bool,
    /// Executions, those included that ended where another had been.
    pub executions: u64,
    /// Different states at choice points.
    pub states: u64,
    /// How many states those stand for, with all ways to name what is alike. As many, if nothing is or if that is not used.
    pub stand_for: u64,
    /// How many of the states differ in more than names.
    pub nameless: u64,
    /// Steps of all executions.
    pub steps: u64,
    /// How often the reduction learned something and the search began again.
    pub restarts: u64,
    /// The most choices in one execution.
    pub depth: usize,
    /// How long it took.
    pub time: Duration,
    /// Each different verdict, with the first execution that showed it.
    pub found: Vec<Found>,
    /// The outcomes of the executions that were run to their end.
    pub outcomes: BTreeSet<Outcome>,
    /// Labels whose accesses were to be dropped and that were never met: that mutation tested nothing.
    pub never_met: Vec<String>,
}

/// One execution, replayed and written down.
#[derive(Clone, Debug)]
pub struct Recording {
    /// What was found.
    pub verdicts: Vec<Verdict>,
    /// What each step did.
    pub log: Vec<LogLine>,
    /// The first error in the words of KASAN, if it has such words.
    pub report: Option<String>,
    /// The outcome that the program declares.
    pub outcome: Vec<u64>,
    /// The schedule, with the hash of its trace.
    pub schedule: Schedule,
}

impl Machine {
    /// Runs executions until the search is over.
    ///
    /// The first call ends set-up: the memory as it is then is what every execution starts from.
    ///
    /// # Panics
    /// If a CPU has no task to boot with, or if what was declared alike ([`Machine::alike`]) turns out to have started
    /// differently.
    pub fn explore(&self, search: Search, limits: Limits) -> Exploration {
        self.explore_with(search, limits, |_| {})
    }

    /// As [`explore`](Self::explore); `progress` is told the number of executions now and then.
    pub fn explore_with(&self, search: Search, limits: Limits, mut progress: impl FnMut(u64)) -> Exploration {
        self.seal_once();
        let reduction = match search {
            Search::Exhaustive(reduction) => reduction,
            Search::Bounded(_) => Reduction::States,
            _ => Reduction::None,
        };
        let exhaustive = matches!(search, Search::Exhaustive(Reduction::Full | Reduction::Named));
        self.set_symmetry(reduction);
        self.set_summary(exhaustive || matches!(search, Search::Random { .. }), exhaustive);
        if exhaustive && self.is_weak() {
            self.warm_up();
        }
        self.set_hashing(reduction != Reduction::None);
        self.set_snapshots(reduction != Reduction::None);
        let mut run = Run::new(self, limits);
        match search {
            Search::Exhaustive(_) => {
                let dfs = Dfs::new(None, reduction != Reduction::None);
                run.depth_first(dfs.with_graph(self.config.ends), &mut progress);
            }
            Search::Bounded(bound) => run.depth_first(Dfs::new(Some(bound), true), &mut progress),
            Search::Random { seed, executions } => {
                self.set_policy(Policy::Random(fastrand::Rng::with_seed(seed)));
                run.many(executions, &mut progress, |_| {});
            }
            Search::Pct { seed, executions, depth } => {
                let places = self.places();
                let mut length = 100;
                run.many(executions, &mut progress, |index| {
                    if index > 0 {
                        length = self.points();
                    }
                    let seed = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    self.set_policy(Policy::Pct(Pct::new(seed, depth, length, places)));
                });
            }
        }
        self.set_snapshots(false);
        self.stacks.abandon();
        self.check_that_like_things_started_alike();
        run.finish()
    }

    /// Random executions of which nothing counts but what the reduction learns. Under `weak` there is more to learn, and to
    /// search again is dearer.
    fn warm_up(&self) {
        const EXECUTIONS: u64 = 300;
        self.set_policy(Policy::Random(fastrand::Rng::with_seed(EXECUTIONS)));
        self.set_learning(true);
        for _ in 0..EXECUTIONS {
            self.execute();
        }
        self.set_learning(false);
        self.summary_start_again();
    }

    /// Replays a schedule, writing down what happens.
    ///
    /// # Errors
    /// If it does not fit: it is for another program, or a step cannot happen when it should, or the steps do
    /// something else than they did.
    pub fn replay(&self, schedule: &Schedule, program: u64) -> Result<Recording, ScheduleError> {
        let error = |message: String| ScheduleError { line: 2, column: 1, message };
        if schedule.program != program {
            return Err(error(format!(
                "the schedule is for another program, or another version of it: {:016x}, not {program:016x}",
                schedule.program
            )));
        }
        let recording = self.record(schedule).map_err(|message| {
            let (line, column) = schedule.place(self.misfit());
            ScheduleError { line, column, message }
        })?;
        if recording.schedule.trace != schedule.trace {
            return Err(ScheduleError {
                line: 3,
                column: 1,
                message: "the steps did something else than when the schedule was made: it is stale".into(),
            });
        }
        Ok(recording)
    }

    /// Runs a schedule without asking whether it fits in all.
    fn record(&self, schedule: &Schedule) -> Result<Recording, String> {
        self.seal_once();
        self.set_summary(false, false);
        self.set_policy(Policy::Replay(schedule.cursor()));
        self.set_recording(true);
        let end = self.execute();
        let stale = self.stale.take();
        let mut outcome = Vec::new();
        self.read_outcome(&mut outcome);
        let recording = Recording {
            verdicts: self.verdicts().to_vec(),
            log: self.log.take(),
            report: self.report.take(),
            outcome,
            schedule: schedule.with_trace(self.tracing.get()),
        };
        self.set_recording(false);
        let left_over = !self.replay_is_at_end();
        match end {
            End::Stale => Err(stale.unwrap_or("a value of the schedule cannot be picked here").into()),
            _ if left_over => Err("the execution ends before the schedule does".into()),
            _ => Ok(recording),
        }
    }

    /// Looks for the shortest execution that shows a verdict of the same kind: the fewest preemptions first.
    ///
    /// Gives the schedule back as it was if nothing shorter is found within `executions` a bound.
    pub fn shrink(&self, found: &Found, executions: u64) -> Found {
        for bound in 0..4 {
            let limits = Limits { executions, stop_at_first: !found.verdict.kind.is_finding(), ..Limits::default() };
            let exploration = self.explore(Search::Bounded(bound), limits);
            let same = exploration.found.into_iter().filter(|other| other.verdict.kind == found.verdict.kind);
            if let Some(mut shortest) = same.min_by_key(|other| (other.schedule.runs(), other.schedule.steps())) {
                shortest.schedule.program = found.schedule.program;
                self.seal_trace(&mut shortest.schedule);
                return shortest;
            }
        }
        found.clone()
    }

    /// Puts the hash of its trace into a schedule that was just made.
    pub(crate) fn seal_trace(&self, schedule: &mut Schedule) {
        if let Ok(recording) = self.record(schedule) {
            schedule.trace = recording.schedule.trace;
        }
    }
}

/// A search under way.
struct Run<'a> {
    machine: &'a Machine,
    limits: Limits,
    started: Instant,
    result: Exploration,
    /// Hashes of the outcomes so far.
    known_outcomes: Keys,
    /// The values of the last execution.
    values: Vec<u64>,
    stopped: bool,
}

/// A hash of what was found; the order in which it was found does not matter.
fn hash_of(verdicts: &[Verdict]) -> u64 {
    verdicts.iter().fold(0, |sum, verdict| sum ^ verdict.hash())
}

/// A search that must begin again goes on for that part of the steps it has done, to learn what it would learn next.
const LEARNS: u64 = 4;

/// How often the clock is looked at.
const BETWEEN_LOOKS: u64 = 1024;

impl<'a> Run<'a> {
    fn new(machine: &'a Machine, limits: Limits) -> Self {
        let result = Exploration {
            complete: false,
            executions: 0,
            states: 0,
            stand_for: 0,
            nameless: 0,
            steps: 0,
            restarts: 0,
            depth: 0,
            time: Duration::ZERO,
            found: Vec::new(),
            outcomes: BTreeSet::new(),
            never_met: Vec::new(),
        };
        Run {
            machine,
            limits,
            started: Instant::now(),
            result,
            known_outcomes: Keys::default(),
            values: Vec::new(),
            stopped: false,
        }
    }

    /// One execution; its result is added up.
    fn one(&mut self, progress: &mut impl FnMut(u64)) {
        let end = self.machine.execute();
        self.result.executions += 1;
        self.result.steps += self.machine.steps() - self.machine.snapshots.skipped.get();
        self.look_at_limits(progress);
        let verdicts = self.machine.verdicts();
        if matches!(end, End::Complete | End::Error) {
            self.machine.execution_ends();
            // Where an error stopped it, how far the others had come is an accident of the order of unrelated steps.
            self.values.clear();
            if end == End::Complete {
                self.machine.read_outcome(&mut self.values);
            }
            let key = self.values.iter().fold(hash_of(&verdicts), |hash, &value| fold(hash, value));
            if self.known_outcomes.insert(key) {
                self.result.outcomes.insert((verdicts.iter().cloned().collect(), self.values.clone()));
            }
        }
        for verdict in verdicts.iter().cloned() {
            if !self.result.found.iter().any(|found| found.verdict == verdict) {
                self.stopped |= self.limits.stop_at_first && !verdict.kind.is_finding();
                self.result.found.push(Found { verdict, schedule: self.machine.record.borrow().clone() });
            }
        }
    }

    fn look_at_limits(&mut self, progress: &mut impl FnMut(u64)) {
        if self.result.executions.is_multiple_of(BETWEEN_LOOKS) {
            progress(self.result.executions);
            self.stopped |= self.started.elapsed() > self.limits.time;
        }
        self.stopped |= self.result.executions >= self.limits.executions;
    }

    fn depth_first(&mut self, dfs: Dfs, progress: &mut impl FnMut(u64)) {
        self.machine.set_policy(Policy::Dfs(dfs));
        // The steps when the search began, and those at which it will have gone on for long enough though it must begin again.
        let mut began = 0;
        let mut goes_on_until = None;
        loop {
            self.one(progress);
            let mut policy = self.machine.policy.borrow_mut();
            let Policy::Dfs(dfs) = &mut *policy else { unreachable!("set above") };
            self.result.states = dfs.states() as u64;
            self.result.stand_for = dfs.stand_for;
            self.result.nameless = self.machine.nameless().unwrap_or(self.result.states);
            self.result.depth = dfs.deepest;
            let is_over = !dfs.advance();
            let steps = self.result.steps;
            if self.machine.summary_must_start_again() {
                let until = *goes_on_until.get_or_insert(steps + (steps - began) / LEARNS);
                // What was found is real though the search is not, and may be what it was to stop at.
                if !self.stopped && (is_over || steps >= until) {
                    dfs.restart();
                    drop(policy);
                    self.start_again();
                    (began, goes_on_until) = (steps, None);
                }
            } else if is_over {
                self.result.complete = !dfs.cut;
                if let Some(for_ever) = dfs.for_ever() {
                    *dfs = for_ever;
                    drop(policy);
                    self.go_on_for_ever(progress);
                }
                return;
            }
            if self.stopped {
                return;
            }
        }
    }

    /// Runs to a state from which no execution ends, and on until that is too long.
    fn go_on_for_ever(&mut self, progress: &mut impl FnMut(u64)) {
        self.machine.set_snapshots(false);
        let too_long = |run: &Run<'_>| run.result.found.iter().any(|found| found.verdict.kind == Kind::TooLong);
        while !too_long(self) {
            self.one(progress);
            let mut policy = self.machine.policy.borrow_mut();
            let Policy::Dfs(dfs) = &mut *policy else { unreachable!("set above") };
            assert!(dfs.advance(), "what was come to once is come to again");
        }
    }

    /// Forgets what was found: it begins anew with what was learned.
    fn start_again(&mut self) {
        self.machine.summary_start_again();
        self.machine.forget_nameless();
        self.result.restarts += 1;
        self.result.found.clear();
        self.result.outcomes.clear();
        self.known_outcomes.clear();
    }

    fn many(&mut self, executions: u64, progress: &mut impl FnMut(u64), mut before: impl FnMut(u64)) {
        for index in 0..executions {
            before(index);
            self.one(progress);
            if self.stopped {
                return;
            }
        }
    }

    fn finish(mut self) -> Exploration {
        self.result.time = self.started.elapsed();
        self.result.never_met = self.machine.never_met();
        for found in &mut self.result.found {
            self.machine.seal_trace(&mut found.schedule);
        }
        self.result
    }
}
