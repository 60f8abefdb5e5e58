//! Litmus tests from files and from those that are bundled, and how a run of one ends.

use core::fmt::Display;
use core::time::Duration;
use std::fs;

use anyhow::Result;
use comfy_table::{Cell, Color, Table, presets};
use include_dir::{Dir, include_dir};
use indicatif::ProgressBar;
use lazytlb_machine::{Found, Limits, Reduction, Search};
use rayon::prelude::*;
use serde::Serialize;

use crate::bad_input::BadInput;
use crate::kinds::{Judged, Litmus, Model, Setting};
use crate::progress;

static BUNDLED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../litmus");

/// How executions are chosen, and when a search is given up.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Effort {
    /// How executions are chosen. Only an exhaustive search can say that a test passes; the others look for bugs in tests
    /// that are too large for it.
    #[arg(long, value_enum, default_value = "exhaustive", value_name = "HOW")]
    search: How,
    /// How many preemptions, interrupts and early drains a bounded search allows; the depth that PCT looks for.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1000))]
    bound: u32,
    /// Where the random numbers of a random or PCT search start.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Gives a test up after so many executions; it counts as incomplete then.
    #[arg(long, default_value_t = 5_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    executions: u64,
    /// Gives a test up after so many seconds.
    #[arg(long, default_value_t = 120, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

/// How executions are chosen.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
enum How {
    /// All of them.
    Exhaustive,
    /// All with few preemptions.
    Bounded,
    /// Each choice uniform.
    Random,
    /// By random priorities.
    Pct,
}

impl Default for Effort {
    fn default() -> Self {
        Effort { search: How::Exhaustive, bound: 3, seed: 1, executions: 5_000_000, seconds: 120 }
    }
}

impl Effort {
    fn search(self) -> Search {
        let Effort { bound, seed, executions, .. } = self;
        match self.search {
            How::Exhaustive => Search::Exhaustive(Reduction::Full),
            How::Bounded => Search::Bounded(bound),
            How::Random => Search::Random { seed, executions },
            How::Pct => Search::Pct { seed, executions, depth: bound },
        }
    }
}

/// The part of the work that one of several machines does, by its number from 1 and theirs.
pub(crate) fn shard(text: &str) -> Result<(u64, u64), String> {
    let parsed = text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
    let fits = parsed.filter(|&(part, of)| 1 <= part && part <= of && of <= 1_000_000);
    fits.ok_or_else(|| "expected K/N, with K from 1 to N and N at most 1000000".to_owned())
}

/// A litmus test, and how the command line names it.
#[derive(Clone)]
pub(crate) struct Test {
    /// The name of a bundled test, or the path of a file.
    pub(crate) asked_as: String,
    pub(crate) litmus: Litmus,
}

/// A run: a test in a setting.
pub(crate) struct Run {
    pub(crate) test: Test,
    pub(crate) setting: Setting,
}

/// How one run of a test ended.
#[derive(Serialize, Clone)]
pub(crate) struct Row {
    pub(crate) test: String,
    pub(crate) machine: &'static str,
    pub(crate) strategy: &'static str,
    pub(crate) memory: &'static str,
    /// The raw finding.
    pub(crate) verdict: Verdict,
    /// Whether it is claimed to be right on this machine.
    pub(crate) claimed: bool,
    /// Whether the finding is what the claim, or the test, says. Where neither says anything, whatever is found is.
    pub(crate) expected: bool,
    pub(crate) kinds: Vec<&'static str>,
    pub(crate) executions: u64,
    pub(crate) states: u64,
    /// How many states those stand for, where tasks and address spaces are alike.
    pub(crate) stand_for: u64,
    /// The most choices in one execution.
    pub(crate) depth: usize,
    pub(crate) complete: bool,
    pub(crate) seconds: f64,
    /// The test says that nothing is to be found here.
    #[serde(skip)]
    pub(crate) is_told_nothing: bool,
    /// How to see the worst of what was found again.
    pub(crate) schedule: Option<String>,
    /// Its report, where it was asked for.
    #[serde(skip)]
    pub(crate) report: Option<String>,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Pass,
    Bug,
    Incomplete,
}

/// The names of the bundled tests, in order, with their texts.
fn bundled() -> impl Iterator<Item = (&'static str, &'static str)> {
    let folders = BUNDLED.dirs().chain([&BUNDLED]);
    let mut files: Vec<_> = folders
        .flat_map(Dir::files)
        .filter_map(|file| Some((file.path().file_stem()?.to_str()?, file.contents_utf8()?)))
        .collect();
    files.sort_unstable();
    files.into_iter()
}

/// The tests that are asked for: files, or names of bundled ones; all bundled ones if none is.
pub(crate) fn load(tests: &[String]) -> Result<Vec<Test>, BadInput> {
    if tests.is_empty() {
        return bundled().map(|(name, text)| parse(name, text)).collect();
    }
    tests.iter().map(|test| load_one(test)).collect()
}

/// A test: a file, or the name of a bundled one.
pub(crate) fn load_one(test: &str) -> Result<Test, BadInput> {
    if let Some((_, text)) = bundled().find(|(name, _)| *name == test) {
        return parse(test, text);
    }
    let bytes = fs::read(test).map_err(|error| {
        BadInput::new(format!("{test}: {error}; it is no bundled test either (see `lazytlb litmus --list`)"))
    })?;
    parse(test, &text_of(bytes, test)?)
}

/// The test that a text is, by the name that it was asked for.
fn parse(asked_as: &str, text: &str) -> Result<Test, BadInput> {
    let litmus = Litmus::parse(text).map_err(|error| BadInput::new(error.in_file(asked_as)))?;
    Ok(Test { asked_as: asked_as.to_owned(), litmus })
}

/// The text of a file that has one.
pub(crate) fn text_of(bytes: Vec<u8>, file: impl Display) -> Result<String, BadInput> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let column = valid.rsplit(|&byte| byte == b'\n').next().map_or(0, <[u8]>::len) + 1;
        BadInput::new(format!("{file}:{line}:{column}: not text: a byte that is not UTF-8"))
    })
}

/// Runs all, as many at a time as there are CPUs, in the order in which they were given.
pub(crate) fn explore_all(runs: &[Run], effort: Effort, reports: bool) -> Result<Vec<Row>> {
    let bar = progress::bar(runs.len() as u64);
    let rows = runs
        .par_iter()
        .map(|run| {
            bar.set_message(format!("{} under {}", run.test.litmus.name(), run.setting.scheme()));
            let row = explore(run, effort, reports, &bar);
            bar.inc(1);
            row
        })
        .collect();
    bar.finish_and_clear();
    rows
}

fn explore(run: &Run, effort: Effort, reports: bool, bar: &ProgressBar) -> Result<Row> {
    let (litmus, setting) = (&run.test.litmus, &run.setting);
    let model = litmus.model(setting);
    let limits =
        Limits { executions: effort.executions, time: Duration::from_secs(effort.seconds), stop_at_first: false };
    let result = model.explore(effort.search(), limits, |_| bar.tick());
    if let Some(label) = result.never_met.first().filter(|_| result.complete) {
        let key = setting.key_of(label);
        let message = format!("{}: `{key} {label}`: nothing with that label is ever met", run.test.asked_as);
        return Err(BadInput::new(message).into());
    }
    let claimed = setting.is_claimed() && !litmus.is_mutation();
    let Judged { shown, failed, as_told, is_told_nothing } = litmus.judge(setting, &result, claimed);
    let verdict = match (failed, result.complete) {
        (true, _) => Verdict::Bug,
        (false, true) => Verdict::Pass,
        (false, false) => Verdict::Incomplete,
    };
    let expected = match as_told {
        // A sample can only show that something is wrong.
        _ if claimed && effort.search != How::Exhaustive => !failed,
        _ if claimed => verdict == Verdict::Pass,
        Some(as_told) => as_told,
        None => true,
    };
    let worst = result.found.iter().max_by_key(|found| found.verdict.kind.gravity());
    let shortest = worst.filter(|_| failed).map(|found| model.shrink(found));
    let report = match &shortest {
        Some(found) if reports => Some(full_report(run, &model, found)?),
        _ => None,
    };
    Ok(Row {
        test: litmus.name().to_owned(),
        machine: setting.machine(),
        strategy: setting.scheme(),
        memory: setting.memory().name(),
        verdict,
        claimed,
        expected,
        kinds: shown,
        executions: result.executions,
        states: result.states,
        stand_for: result.stand_for,
        depth: result.depth,
        complete: result.complete,
        seconds: result.time.as_secs_f64(),
        is_told_nothing: is_told_nothing && (result.complete || !litmus.is_mutation()),
        schedule: shortest.map(|found| found.schedule.to_string()),
        report,
    })
}

fn full_report(run: &Run, model: &Model, found: &Found) -> Result<String> {
    let (name, options) = (&run.test.asked_as, run.setting.options());
    let replay = format!("save the schedule as FILE, then: lazytlb litmus {name} {options} --replay FILE");
    Ok(model.report(found, Some(&replay))?)
}

/// The rows as a table.
pub(crate) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "test",
        "machine",
        "strategy",
        "memory",
        "verdict",
        "found",
        "executions",
        "states",
        "depth",
        "seconds",
    ]);
    for row in rows {
        let (text, color) = match (row.verdict, row.claimed, row.expected) {
            (Verdict::Pass, ..) => ("pass", Color::Green),
            (Verdict::Bug, true, _) => ("BUG", Color::Red),
            (Verdict::Bug, false, true) => ("bug, not claimed", Color::Yellow),
            (Verdict::Bug, false, false) => ("bug, but not the expected one", Color::Red),
            (Verdict::Incomplete, _, true) => ("nothing found", Color::Yellow),
            (Verdict::Incomplete, ..) => ("incomplete", Color::Red),
        };
        table.add_row([
            Cell::new(&row.test),
            Cell::new(row.machine),
            Cell::new(row.strategy),
            Cell::new(row.memory),
            Cell::new(text).fg(color),
            Cell::new(row.kinds.join(" ")),
            Cell::new(row.executions),
            Cell::new(row.states),
            Cell::new(row.depth),
            Cell::new(format!("{:.4}", row.seconds)),
        ]);
    }
    table
}
