//! `lazytlb torture`: the strategies on real threads.

use core::time::Duration;
use std::thread;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use fastrand::Rng;
use lazytlb::core::mm_switch::{BroadcastFlush, IpiUnlazy};
use lazytlb::{LazyTlb, Refcount, Switcher};
use lazytlb_adapters::AnyLazyTlbAlloc;
use lazytlb_adapters::boot::UnknownStrategy;
use lazytlb_host::{Config, Host, HostPlatform, Interrupts, Machine, Pool, User, live, wrong};
use serde::Serialize;

use crate::progress;

/// How many mms all CPUs know.
const POOL: usize = 3;

/// Arguments of `lazytlb torture`.
///
/// Each CPU is a thread of this process. User tasks, kernel threads and the idle task take turns on it, exit, exec and adopt among mms that other CPUs
/// replace, and CPUs go offline and come back. Whoever loads, walks or looks into what is freed is found, as is what is never freed.
///
/// Nothing is found by chance here that the model could not find; but this is the strategies' own code on your processor's own memory, interrupted at
/// any instruction.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this strategy; can be repeated. `all` for all, as if none is given.
    #[arg(long, value_name = "NAME", value_parser = strategy)]
    strategy: Vec<Chosen>,
    /// How long each is tortured.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Ends each when every CPU has done so many steps, if that comes first.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// How many CPUs: as many as this machine has, and two at least, if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=128))]
    cpus: Option<u8>,
    /// Only where CPUs are interrupted so; can be repeated.
    #[arg(long, value_name = "HOW")]
    interrupts: Vec<By>,
    /// Only where TLBs are flushed so; can be repeated. Bugs are planted under `broadcast`, if this is not given: where flushes end borrows nobody needs more.
    #[arg(long, value_name = "HOW")]
    flush: Vec<Flush>,
    /// What happens on each CPU.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Plants a bug, which must be caught: that is success then.
    #[arg(long, value_name = "NAME")]
    mutation: Option<Mutation>,
    /// Prints one JSON array instead of a table.
    #[arg(long)]
    json: bool,
}

/// A strategy, or all of them.
#[derive(Clone, Copy)]
enum Chosen {
    All,
    One(AnyLazyTlbAlloc),
}

fn strategy(name: &str) -> Result<Chosen, UnknownStrategy> {
    if name == "all" { Ok(Chosen::All) } else { name.parse().map(Chosen::One) }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// By real-time signals, between any two instructions.
    Signals,
    /// Where they poll.
    Polled,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Flush {
    /// By hardware.
    Broadcast,
    /// By interrupts, which end a lazy CPU's borrow.
    Unlazy,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mutation {
    /// Nobody counts borrows, and nobody looks for borrowers.
    Unprotected,
    /// Borrows are counted, and never given back.
    Leaks,
    /// Borrows are given back that nobody has counted.
    DropsUncounted,
    /// No flush reaches a walk cache.
    NeverFlushed,
}

/// What it is called on the command line.
fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is left out").get_name().to_owned()
}

/// What came of a strategy.
#[derive(Serialize)]
struct Row {
    strategy: String,
    flush: String,
    interrupts: String,
    cpus: usize,
    seconds: f64,
    /// Of all CPUs.
    steps: u64,
    /// How many mms were made, and how many of them were never freed.
    mms: usize,
    left: usize,
    /// How many interrupts were sent.
    interrupted: usize,
    /// How much was found, and the first of it.
    found: usize,
    findings: Vec<String>,
}

impl Row {
    fn is_clean(&self) -> bool {
        self.found == 0 && self.left == 0
    }
}

/// Where and for how long.
struct Torture<'a> {
    arguments: &'a Arguments,
    flush: Flush,
    by: By,
    cpus: usize,
}

impl Torture<'_> {
    fn of_any(&self, strategy: AnyLazyTlbAlloc) -> Row {
        match self.flush {
            Flush::Broadcast => self.of::<Host<BroadcastFlush>, _>(strategy),
            Flush::Unlazy => self.of::<Host<IpiUnlazy>, _>(strategy),
        }
    }

    /// Of a bug that is planted.
    fn of_wrong(&self, mutation: Mutation) -> Row {
        macro_rules! on {
            ($arch:ty) => {
                match mutation {
                    Mutation::Unprotected => self.of::<Host<$arch>, _>(wrong::Unprotected),
                    Mutation::Leaks => self.of::<Host<$arch>, _>(wrong::Leaks),
                    Mutation::DropsUncounted => self.of::<Host<$arch>, _>(wrong::DropsUncounted),
                    Mutation::NeverFlushed => self.of::<Host<$arch>, _>(Refcount),
                }
            };
        }
        match self.flush {
            Flush::Broadcast => on!(BroadcastFlush),
            Flush::Unlazy => on!(IpiUnlazy),
        }
    }

    fn of<P: HostPlatform, S: LazyTlb<P>>(&self, strategy: S) -> Row
    where
        Switcher<P, S>: Sync,
        User<P, S>: Send,
    {
        let name = strategy.name().to_owned();
        let interrupts = match self.by {
            By::Signals => Interrupts::Signals,
            By::Polled => Interrupts::Polled,
        };
        let never_flushed = self.arguments.mutation == Some(Mutation::NeverFlushed);
        let machine =
            Machine::<P, S>::boot(strategy, Config { cpus: self.cpus, interrupts, never_flushed, ..Config::default() });
        let (begun, time) = (Instant::now(), Duration::from_secs(self.arguments.seconds));
        let most = self.arguments.steps.unwrap_or(u64::MAX);
        let pool = Pool::new(machine, POOL);
        let steps = machine.run(|cpu| {
            let mut steps = 0;
            let numbers = Rng::with_seed(self.arguments.seed.wrapping_add(cpu.index() as u64));
            live(cpu, &pool, numbers, || {
                steps += 1;
                // A finding is enough.
                steps <= most && (steps % 64 != 0 || (begun.elapsed() < time && machine.found().1 == 0))
            })
        });
        machine.finish(pool);
        let (findings, found) = machine.found();
        let (mms, left) = machine.made_and_left();
        Row {
            strategy: name,
            flush: name_of(self.flush),
            interrupts: name_of(self.by),
            cpus: self.cpus,
            seconds: begun.elapsed().as_secs_f64(),
            steps: steps.into_iter().sum(),
            mms,
            left,
            interrupted: machine.kicks(),
            found,
            findings: findings.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Runs the command; says whether nothing was found, or what was planted was caught.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let is_all = arguments.strategy.is_empty() || arguments.strategy.iter().any(|one| matches!(one, Chosen::All));
    let chosen = arguments.strategy.iter().filter_map(|one| if let Chosen::One(one) = one { Some(*one) } else { None });
    let strategies: Vec<AnyLazyTlbAlloc> = if is_all { AnyLazyTlbAlloc::all().collect() } else { chosen.collect() };
    let processors = || thread::available_parallelism().map_or(2, |count| count.get().max(2));
    let cpus = arguments.cpus.map_or_else(processors, usize::from);
    let is_asked = |flush: &&Flush| match &arguments.flush[..] {
        [] => arguments.mutation.is_none() || **flush == Flush::Broadcast,
        asked => asked.contains(flush),
    };
    let mut settings = Vec::new();
    for &flush in Flush::value_variants().iter().filter(is_asked) {
        let asked = |one: &&By| arguments.interrupts.is_empty() || arguments.interrupts.contains(one);
        settings.extend(By::value_variants().iter().filter(asked).map(|&by| Torture { arguments, flush, by, cpus }));
    }
    let count = if arguments.mutation.is_some() { 1 } else { strategies.len() };
    let bar = progress::bar((settings.len() * count) as u64);
    let mut rows = Vec::new();
    for setting in &settings {
        let of = |row: Row| {
            bar.inc(1);
            row
        };
        match arguments.mutation {
            Some(mutation) => rows.push(of(setting.of_wrong(mutation))),
            None => rows.extend(strategies.iter().map(|&strategy| of(setting.of_any(strategy)))),
        }
    }
    bar.finish_and_clear();
    let is_good = rows.iter().all(|row| row.is_clean() == arguments.mutation.is_none());
    if arguments.json {
        crate::print_json(&rows)?;
    } else {
        crate::print(&text(&rows, arguments.mutation.is_some()))?;
    }
    Ok(is_good)
}

fn text(rows: &[Row], is_planted: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["strategy", "flush", "interrupts", "verdict", "steps", "mms", "left", "interrupted", "seconds"]);
    for row in rows {
        let verdict = match (row.is_clean(), is_planted) {
            (true, false) => "pass",
            (true, true) => "MISSED",
            (false, false) => "BUG",
            (false, true) => "caught",
        };
        table.add_row([
            row.strategy.clone(),
            row.flush.clone(),
            row.interrupts.clone(),
            verdict.to_owned(),
            row.steps.to_string(),
            row.mms.to_string(),
            row.left.to_string(),
            row.interrupted.to_string(),
            format!("{:.1}", row.seconds),
        ]);
    }
    let mut text = format!("{table}\n");
    for row in rows.iter().filter(|row| row.found > 0) {
        text += &format!("\n{}, {}, {}: {} found\n", row.strategy, row.flush, row.interrupts, row.found);
        for finding in &row.findings {
            text += &format!("  {finding}\n");
        }
    }
    text
}
