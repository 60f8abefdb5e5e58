//! `lazytlb litmus`: runs litmus tests, and replays what they found.

use core::time::Duration;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use comfy_table::{Cell, Color, Table, presets};
use include_dir::{Dir, include_dir};
use indicatif::ProgressBar;
use lazytlb_machine::{Found, Kind, Limits, MemoryModel, Reduction, Schedule, Search};
use lazytlb_sched_model::{Litmus, Model, Rules, Setting, Strategy};
use serde::Serialize;

use crate::bad_input::BadInput;
use crate::progress;

static BUNDLED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../litmus");

/// Arguments of `lazytlb litmus`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Litmus files, or names of bundled tests; all bundled tests if none is given.
    tests: Vec<String>,
    /// Only under this strategy; can be repeated. All strategies if not given.
    #[arg(long, value_name = "NAME")]
    strategy: Vec<Strategy>,
    /// Only under this memory model, sc or tso; both if not given.
    #[arg(long, value_name = "MODEL", value_parser = memory)]
    memory: Vec<MemoryModel>,
    /// Only on this machine; all that the test names if not given.
    #[arg(long, value_name = "RULES")]
    machine: Vec<Rules>,
    /// Gives a test up after so many executions; it counts as incomplete then.
    #[arg(long, default_value_t = 5_000_000, value_name = "N")]
    executions: u64,
    /// Gives a test up after so many seconds.
    #[arg(long, default_value_t = 120, value_name = "S")]
    seconds: u64,
    /// Prints the report of each bug: what KASAN would say, who holds what, the shortest timeline, its schedule.
    #[arg(long)]
    report: bool,
    /// Replays the schedule in this file and prints the report. Needs one test, strategy, memory model and machine.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Prints one JSON array instead of a table.
    #[arg(long)]
    json: bool,
    /// Lists the bundled tests.
    #[arg(long)]
    list: bool,
}

fn memory(name: &str) -> Result<MemoryModel, String> {
    let found = MemoryModel::ALL.into_iter().find(|memory| memory.name() == name);
    found.ok_or_else(|| "there are: sc, tso".to_owned())
}

/// How one run of a test ended.
#[derive(Serialize)]
struct Row {
    test: String,
    machine: &'static str,
    strategy: &'static str,
    memory: &'static str,
    /// The raw finding.
    verdict: Verdict,
    /// Whether the strategy claims to work on this machine.
    claimed: bool,
    /// Whether the finding is what the claim, or the test, says. Where neither says anything, whatever is found is.
    expected: bool,
    kinds: Vec<&'static str>,
    executions: u64,
    states: u64,
    complete: bool,
    seconds: f64,
    /// How to see the first bug again.
    schedule: Option<String>,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Bug,
    Incomplete,
}

/// A run: a test in a setting.
struct Run {
    litmus: Litmus,
    setting: Setting,
}

/// Runs the command; says whether all was as expected.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        for litmus in load(&[])? {
            crate::print(&format!("{}\n{}\n", litmus.program.name, indent(&litmus.about)))?;
        }
        return Ok(true);
    }
    let runs = runs(arguments)?;
    if let Some(file) = &arguments.replay {
        return replay(&runs, file);
    }
    let bar = progress::bar(runs.len() as u64);
    let mut rows = Vec::new();
    for run in &runs {
        bar.set_message(format!("{} under {}", run.litmus.program.name, run.setting.strategy));
        let (row, report) = explore(run, arguments, &bar)?;
        if let Some(report) = report {
            bar.suspend(|| crate::print(&format!("{report}\n")))?;
        }
        rows.push(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if arguments.json {
        crate::print_json(&rows)?;
    } else {
        crate::print(&format!("{}\n", table(&rows)))?;
    }
    Ok(rows.iter().all(|row| row.expected))
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// The tests that are asked for: files, or names of bundled ones.
fn load(tests: &[String]) -> Result<Vec<Litmus>, BadInput> {
    let parse = |name: &str, text: &str| Litmus::parse(text).map_err(|error| BadInput::new(error.in_file(name)));
    if tests.is_empty() {
        let mut files: Vec<_> = BUNDLED.files().collect();
        files.sort_by_key(|file| file.path());
        let name = |file: &include_dir::File<'_>| file.path().display().to_string();
        return files.iter().map(|file| parse(&name(file), file.contents_utf8().unwrap_or_default())).collect();
    }
    let read = |test: &String| {
        if let Some(file) = BUNDLED.get_file(format!("{test}.litmus")) {
            return parse(test, file.contents_utf8().unwrap_or_default());
        }
        let bytes = fs::read(test).map_err(|error| {
            BadInput::new(format!("{test}: {error}; it is no bundled test either (see `lazytlb litmus --list`)"))
        })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let line =
                error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
            BadInput::new(format!("{test}:{}:1: not text: a byte that is not UTF-8", line + 1))
        })?;
        parse(test, &text)
    };
    tests.iter().map(read).collect()
}

fn runs(arguments: &Arguments) -> Result<Vec<Run>, BadInput> {
    let wanted =
        |all: &[Strategy]| if arguments.strategy.is_empty() { all.to_vec() } else { arguments.strategy.clone() };
    let mut runs = Vec::new();
    for litmus in load(&arguments.tests)? {
        // A test with a planted bug is not a test of the strategies.
        if litmus.is_mutation() {
            continue;
        }
        for &rules in litmus.machines.iter().filter(|&rules| among(rules, &arguments.machine)) {
            for &memory in litmus.memories.iter().filter(|&memory| among(memory, &arguments.memory)) {
                for strategy in wanted(&Strategy::ALL) {
                    let setting = litmus.setting(strategy, rules, memory);
                    runs.push(Run { litmus: litmus.clone(), setting });
                }
            }
        }
    }
    if runs.is_empty() {
        return Err(BadInput::new("no test runs on the machines and under the memory models that were asked for"));
    }
    Ok(runs)
}

fn among<T: PartialEq>(one: &T, wanted: &[T]) -> bool {
    wanted.is_empty() || wanted.contains(one)
}

fn explore(run: &Run, arguments: &Arguments, bar: &ProgressBar) -> Result<(Row, Option<String>)> {
    let Run { litmus, setting } = run;
    let model = Model::new(&litmus.program, setting);
    let limits =
        Limits { executions: arguments.executions, time: Duration::from_secs(arguments.seconds), stop_at_first: false };
    let result = model.explore(Search::Exhaustive(Reduction::Full), limits, |_| bar.tick());
    let kinds: BTreeSet<Kind> = result.found.iter().map(|found| found.verdict.kind).collect();
    let claimed = setting.strategy.claims(setting.rules);
    let failed = kinds.iter().any(|kind| !litmus.allowed.contains(kind));
    let verdict = match (failed, result.complete) {
        (true, _) => Verdict::Bug,
        (false, true) => Verdict::Pass,
        (false, false) => Verdict::Incomplete,
    };
    let told = litmus.expectation(setting.strategy, setting.rules);
    let expected = match told {
        _ if claimed => verdict == Verdict::Pass,
        Some(told) => kinds == told.kinds.iter().copied().collect(),
        None => true,
    };
    let worst = result.found.iter().max_by_key(|found| !found.verdict.kind.is_finding());
    let shortest = worst.filter(|_| failed).map(|found| model.shrink(found));
    let report = match &shortest {
        Some(found) if arguments.report && !arguments.json => Some(full_report(run, &model, found)?),
        _ => None,
    };
    let row = Row {
        test: litmus.program.name.clone(),
        machine: setting.rules.name(),
        strategy: setting.strategy.name(),
        memory: setting.memory.name(),
        verdict,
        claimed,
        expected,
        kinds: kinds.iter().map(|kind| kind.name()).collect(),
        executions: result.executions,
        states: result.states,
        complete: result.complete,
        seconds: result.time.as_secs_f64(),
        schedule: shortest.map(|found| found.schedule.to_string()),
    };
    Ok((row, report))
}

fn full_report(run: &Run, model: &Model, found: &Found) -> Result<String> {
    let Setting { strategy, rules, memory, .. } = &run.setting;
    let name = &run.litmus.program.name;
    let replay = format!(
        "save the schedule as FILE, then: lazytlb litmus {name} --strategy {strategy} --memory {memory} --machine {rules} --replay FILE"
    );
    Ok(model.report(found, Some(&replay))?)
}

fn replay(runs: &[Run], file: &PathBuf) -> Result<bool> {
    let [run] = runs else {
        return Err(BadInput::new(format!(
            "a schedule is of one test under one strategy: {} runs fit; name one test, --strategy, --memory and --machine",
            runs.len()
        ))
        .into());
    };
    let name = file.display();
    let text = fs::read_to_string(file).map_err(|error| BadInput::new(format!("{name}: {error}")))?;
    let schedule: Schedule = text.parse().map_err(|error| BadInput::new(format!("{name}:{error}")))?;
    let model = Model::new(&run.litmus.program, &run.setting);
    let recording = model.replay(&schedule).map_err(|error| BadInput::new(format!("{name}:{error}")))?;
    let found = recording.verdicts.iter().max_by_key(|verdict| !verdict.kind.is_finding());
    match found {
        Some(verdict) => {
            let found = Found { verdict: verdict.clone(), schedule };
            crate::print(&format!("{}\n", model.report(&found, None)?))?;
            Ok(false)
        }
        None => {
            crate::print("the schedule runs to its end, and nothing is found\n")?;
            Ok(true)
        }
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["test", "machine", "strategy", "memory", "verdict", "found", "executions", "states", "seconds"]);
    for row in rows {
        let (text, color) = match (row.verdict, row.claimed, row.expected) {
            (Verdict::Pass, ..) => ("pass", Color::Green),
            (Verdict::Bug, true, _) => ("BUG", Color::Red),
            (Verdict::Bug, false, true) => ("bug, not claimed", Color::Yellow),
            (Verdict::Bug, false, false) => ("bug, but not the expected one", Color::Red),
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
            Cell::new(format!("{:.4}", row.seconds)),
        ]);
    }
    table
}
