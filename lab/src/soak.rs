//! `lazytlb soak`: random programs under every strategy that claims to stand them.
//!
//! The programs of a seed are a sequence without end. A shard runs each N-th of it, so that shards share nothing, and what they
//! found adds up to what one run would have found.

mod merge;
mod result;

use core::time::Duration;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use indicatif::ProgressBar;
use lazytlb_machine::{Found, Kind, Limits, MemoryModel, Reduction, Search};
use lazytlb_sched_model::{Model, Program, Rules, Setting, Strategy, generate};
use rayon::prelude::*;

use crate::bad_input::BadInput;
use crate::progress;
use result::{Alarm, Counts, Shape, Soak};

/// Arguments of `lazytlb soak`.
///
/// Random programs of up to 4 CPUs, over all statements of the litmus language that a correct kernel could run, under each
/// strategy on each machine that it claims. Nothing may be found. What is found is shrunk and printed as a litmus file.
///
/// The same seed gives the same programs and executions. With `--shard K/N` only each N-th program is run: the results of all
/// N shards, kept with `--json`, are put together with `--merge`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Stops after so many seconds; 60 if no other end is given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Stops after so many random executions, at the end of a program.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    executions: Option<u64>,
    /// Stops after so many programs of the sequence; a shard runs its share of these.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    programs: Option<u64>,
    /// Which programs, and which executions of them.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Random executions of each program under each strategy, machine and memory model, half of them by PCT.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Only this part of the programs: the K-th of N.
    #[arg(long, default_value = "1/1", value_name = "K/N", value_parser = crate::suite::shard)]
    shard: (u64, u64),
    /// Only under this strategy; can be repeated. All strategies if not given, and their variants.
    #[arg(long, value_name = "NAME")]
    strategy: Vec<Strategy>,
    /// Only on this machine; can be repeated.
    #[arg(long, value_name = "RULES")]
    machine: Vec<Rules>,
    /// Only under this memory model: sc, tso or weak; can be repeated.
    #[arg(long, value_name = "MODEL", value_parser = crate::litmus::memory)]
    memory: Vec<MemoryModel>,
    /// Also where a strategy does not claim to work: what is found there is shown and is no alarm.
    #[arg(long)]
    unclaimed: bool,
    /// Plants a bug: accesses and fences with this label have no effect. What is found is no alarm then.
    #[arg(long, value_name = "LABEL")]
    drop: Vec<String>,
    /// Plants a bug: accesses and fences with this label order nothing.
    #[arg(long, value_name = "LABEL")]
    relax: Vec<String>,
    /// Prints the report of each finding.
    #[arg(long)]
    report: bool,
    /// Prints JSON, as `--merge` reads it.
    #[arg(long)]
    json: bool,
    /// Puts the JSON results of all shards of a run together, and runs nothing.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["seconds", "executions", "programs", "seed", "runs", "shard", "report", "drop", "relax", "unclaimed", "strategy", "machine", "memory"])]
    merge: Vec<PathBuf>,
}

/// Runs the command; says whether nothing was found that is an alarm.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let (soak, reports) = match &arguments.merge[..] {
        [] => soak(arguments)?,
        files => (merge::merge(files)?, Vec::new()),
    };
    for report in reports {
        crate::print(&format!("{report}\n"))?;
    }
    if arguments.json {
        crate::print_json(&soak)?;
    } else {
        crate::print(&soak.text())?;
    }
    Ok(soak.is_good())
}

/// One strategy on one machine under one memory model.
type Pair = (Strategy, Rules, MemoryModel);

fn pairs(arguments: &Arguments) -> Result<Vec<Pair>, BadInput> {
    let strategies = if arguments.strategy.is_empty() { Strategy::KNOWN } else { &arguments.strategy[..] };
    let asked = |rules: &Rules| arguments.machine.is_empty() || arguments.machine.contains(rules);
    let asked_memory = |memory: &MemoryModel| arguments.memory.is_empty() || arguments.memory.contains(memory);
    let mut pairs = Vec::new();
    for &strategy in strategies {
        for rules in Rules::ALL.into_iter().filter(asked) {
            if arguments.unclaimed || strategy.claims(rules) {
                pairs.extend(MemoryModel::ALL.into_iter().filter(asked_memory).map(|memory| (strategy, rules, memory)));
            }
        }
    }
    if pairs.is_empty() {
        let message = "no strategy that was asked for claims a machine that was asked for; `--unclaimed` runs it there";
        return Err(BadInput::new(message));
    }
    Ok(pairs)
}

/// The number of a program of the sequence: one step of splitmix64.
fn number(seed: u64, index: u64) -> u64 {
    let mut x = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Where a failure was seen first: the program's place in the sequence, and the pair's among all.
type Place = (u64, usize);

/// What is known of all failures of a kind under a strategy.
struct Failure {
    place: Place,
    found: Found,
    setting: Setting,
    /// How many runs showed it.
    runs: u64,
}

type Failures = BTreeMap<(Strategy, Kind), Failure>;

/// What came of one program, or of many.
#[derive(Default)]
struct Tally {
    programs: u64,
    counts: BTreeMap<Strategy, Counts>,
    failures: Failures,
    /// Labels that were to be planted, and how often they were met.
    met: BTreeMap<String, u64>,
}

impl Tally {
    fn add(mut self, other: Tally) -> Tally {
        self.programs += other.programs;
        for (strategy, counts) in other.counts {
            self.counts.entry(strategy).or_default().add(&counts);
        }
        for (key, failure) in other.failures {
            match self.failures.get_mut(&key) {
                Some(first) if first.place < failure.place => first.runs += failure.runs,
                first => {
                    let runs = first.map_or(0, |first| first.runs) + failure.runs;
                    self.failures.insert(key, Failure { runs, ..failure });
                }
            }
        }
        for (label, met) in other.met {
            *self.met.entry(label).or_default() += met;
        }
        self
    }

    fn executions(&self) -> u64 {
        self.counts.values().map(|counts| counts.executions).sum()
    }
}

/// How many programs are begun before the ends are looked at: the same on every machine, so that a budget of executions ends
/// every run at the same program.
const BATCH: u64 = 16;

fn soak(arguments: &Arguments) -> Result<(Soak, Vec<String>)> {
    let pairs = pairs(arguments)?;
    let started = Instant::now();
    let no_end = arguments.programs.is_none() && arguments.executions.is_none();
    let seconds = arguments.seconds.or(no_end.then_some(60));
    let is_over = || seconds.is_some_and(|seconds| started.elapsed() >= Duration::from_secs(seconds));
    let (part, of) = arguments.shard;
    let bar = progress::spinner("random executions");
    let mut tally = Tally::default();
    let mut next = part - 1;
    loop {
        let batch: Vec<u64> = (0..BATCH)
            .map_while(|step| next.checked_add(step * of))
            .take_while(|&index| arguments.programs.is_none_or(|programs| index < programs))
            .collect();
        let results: Vec<Tally> = batch
            .par_iter()
            .filter(|_| !is_over())
            .map(|&index| {
                let tally = soak_program(arguments, &pairs, index);
                bar.inc(tally.executions());
                tally
            })
            .collect();
        tally = results.into_iter().fold(tally, Tally::add);
        next = next.saturating_add(BATCH * of);
        let is_enough = arguments.executions.is_some_and(|executions| tally.executions() >= executions);
        if batch.is_empty() || is_enough || is_over() {
            break;
        }
    }
    if let Some(label) = arguments.drop.iter().chain(&arguments.relax).find(|label| !tally.met.contains_key(*label)) {
        bar.finish_and_clear();
        return Err(BadInput::new(format!("nothing with the label `{label}` is ever met in these programs")).into());
    }
    let shown = explain(arguments, &tally.failures, &bar);
    bar.finish_and_clear();
    let (alarms, reports) = shown?;
    let soak = Soak {
        shape: shape(arguments, &pairs),
        shards: vec![part],
        programs: tally.programs,
        seconds: started.elapsed().as_secs_f64(),
        strategies: tally.counts.into_iter().map(|(strategy, counts)| (strategy.name().to_owned(), counts)).collect(),
        alarms,
    };
    Ok((soak, reports))
}

fn shape(arguments: &Arguments, pairs: &[Pair]) -> Shape {
    Shape {
        seed: arguments.seed,
        of: arguments.shard.1,
        runs: arguments.runs,
        programs: arguments.programs,
        pairs: pairs.iter().map(|(strategy, rules, memory)| format!("{strategy} {rules} {memory}")).collect(),
        dropped: arguments.drop.clone(),
        relaxed: arguments.relax.clone(),
    }
}

/// A program that all its executions are run of, as far as a budget of `--runs` goes.
fn is_small(program: &Program) -> bool {
    program.cpus() <= 2 && program.scripts.iter().map(Vec::len).sum::<usize>() <= 4 && !program.arriving_any()
}

fn soak_program(arguments: &Arguments, pairs: &[Pair], index: u64) -> Tally {
    let seed = number(arguments.seed, index);
    let litmus = generate::litmus(generate::program(seed));
    let half = arguments.runs / 2;
    let random = Search::Random { seed, executions: arguments.runs - half };
    let pct = Search::Pct { seed, executions: half, depth: 3 };
    let mut tally = Tally { programs: 1, ..Tally::default() };
    for (place, &(strategy, rules, memory)) in pairs.iter().enumerate() {
        if !litmus.memories.contains(&memory) {
            continue;
        }
        let setting = Setting {
            dropped: arguments.drop.clone(),
            relaxed: arguments.relax.clone(),
            ..Setting::new(strategy, rules, memory)
        };
        let model = Model::new(&litmus.program, &setting);
        let counts = tally.counts.entry(strategy).or_default();
        counts.runs += 1;
        let mut found = Vec::new();
        for search in [random, pct] {
            let result = model.explore(search, Limits::default(), |_| {});
            counts.executions += result.executions;
            counts.steps += result.steps;
            found.extend(result.found);
            for label in setting.dropped.iter().chain(&setting.relaxed) {
                if !result.never_met.contains(label) {
                    *tally.met.entry(label.clone()).or_default() += 1;
                }
            }
        }
        if is_small(&litmus.program) {
            let limits = Limits { executions: 4 * arguments.runs, ..Limits::default() };
            let result = model.explore(Search::Exhaustive(Reduction::Full), limits, |_| {});
            counts.exhausted += u64::from(result.complete);
            found.extend(result.found);
        }
        // What was found first of the worst.
        let worst = found.into_iter().rev().max_by_key(|found| found.verdict.kind.gravity());
        if let Some(found) = worst {
            counts.failed += 1;
            let failure = Failure { place: (index, place), found, setting, runs: 1 };
            let one = BTreeMap::from([((strategy, failure.found.verdict.kind), failure)]);
            tally = tally.add(Tally { failures: one, ..Tally::default() });
        }
    }
    tally
}

/// Each kind of failure under each strategy, shrunk, and its report.
fn explain(arguments: &Arguments, failures: &Failures, bar: &ProgressBar) -> Result<(Vec<Alarm>, Vec<String>)> {
    /// Each smaller program is run so often at least.
    const EXECUTIONS: u64 = 2000;
    bar.set_message("random executions; what was found is made smaller");
    let explained = failures
        .par_iter()
        .map(|(_, failure)| {
            let program = generate::program(number(arguments.seed, failure.place.0));
            let executions = EXECUTIONS.max(8 * arguments.runs);
            let shrunk = lazytlb_sched_model::shrink::shrink(&program, &failure.setting, &failure.found, executions);
            let alarm = Alarm::new(arguments.seed, failure, &shrunk);
            let report = if arguments.report {
                let model = Model::new(&shrunk.program, &failure.setting);
                Some(model.report(&shrunk.found, Some(&alarm.replay()))?)
            } else {
                None
            };
            Ok((alarm, report))
        })
        .collect::<Result<Vec<_>>>()?;
    let (alarms, reports): (Vec<Alarm>, Vec<Option<String>>) = explained.into_iter().unzip();
    Ok((alarms, reports.into_iter().flatten().collect()))
}
