//! `lazytlb litmus`: runs litmus tests, and replays what they found.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lazytlb_machine::{Found, MemoryModel, Schedule};
use serde::Serialize;

use crate::bad_input::BadInput;
use crate::kinds::{Asked, Litmus};
use crate::suite::{self, Effort, Run, Test};

/// Arguments of `lazytlb litmus`.
///
/// Each test is run over all interleavings, under each strategy, on each machine and memory model. A strategy that claims
/// a machine must pass there; elsewhere what is found is shown, and compared with what the test says. The language is
/// described in the documentation of `lazytlb_sched_model::litmus`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Litmus files, or names of bundled tests; all bundled tests without a planted bug if none is given.
    tests: Vec<String>,
    #[command(flatten)]
    asked: Asked,
    /// Only what is left out otherwise: tests under the strategies for which they say that they are slow. Each takes seconds to
    /// minutes: give it `--seconds` and `--executions` enough.
    #[arg(long, conflicts_with = "list")]
    slow: bool,
    /// Only each N-th run, from the K-th on: N machines share the work.
    #[arg(long, default_value = "1/1", value_name = "K/N", value_parser = suite::shard)]
    shard: (u64, u64),
    #[command(flatten)]
    effort: Effort,
    /// Prints the report of each bug: what KASAN would say, who holds what, the shortest timeline, its schedule.
    #[arg(long, conflicts_with = "json")]
    report: bool,
    /// Replays the schedule in this file and prints the report. Needs one test, strategy, memory model and machine.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Prints one JSON array instead of a table.
    #[arg(long)]
    json: bool,
    /// Lists the bundled tests.
    #[arg(long, conflicts_with_all = ["strategy", "memory", "machine", "generation", "backend", "shard", "report", "replay"])]
    list: bool,
}

/// A memory model by its name.
pub(crate) fn memory(name: &str) -> Result<MemoryModel, String> {
    let found = MemoryModel::ALL.into_iter().find(|memory| memory.name() == name);
    found.ok_or_else(|| "there are: sc, tso, weak".to_owned())
}

/// Runs the command; says whether all was as expected.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        list(&suite::load(&arguments.tests)?, arguments.json)?;
        return Ok(true);
    }
    let (runs, left_out) = runs(arguments)?;
    let (part, of) = (arguments.shard.0 as usize, arguments.shard.1 as usize);
    let runs: Vec<Run> = runs.into_iter().skip(part - 1).step_by(of).collect();
    if let Some(file) = &arguments.replay {
        return replay(&runs, file, arguments.json);
    }
    let rows = suite::explore_all(&runs, arguments.effort, arguments.report && !arguments.json)?;
    for report in rows.iter().filter_map(|row| row.report.as_ref()) {
        crate::print(&format!("{report}\n"))?;
    }
    if arguments.json {
        crate::print_json(&rows)?;
    } else {
        crate::print(&format!("{}\n{}", suite::table(&rows), said_of(left_out)))?;
    }
    Ok(rows.iter().all(|row| row.expected))
}

/// A test as `--list --json` has it.
#[derive(Serialize)]
struct Listed<'a> {
    test: &'a str,
    about: &'a str,
    /// The entry of the catalogue whose bug is planted, if one is.
    bug: Option<&'a str>,
}

fn list(tests: &[Test], json: bool) -> Result<()> {
    if json {
        let listed = tests.iter().map(|Test { litmus, .. }| Listed {
            test: litmus.name(),
            about: litmus.about().trim_end(),
            bug: litmus.bug().map(|(number, _)| number.as_str()),
        });
        return crate::print_json(&listed.collect::<Vec<_>>());
    }
    for Test { litmus, .. } in tests {
        crate::print(&format!("{}\n{}\n", litmus.name(), indent(litmus.about())))?;
    }
    Ok(())
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// What is said of runs that are left out.
fn said_of(left_out: usize) -> String {
    match left_out {
        0 => String::new(),
        _ => format!("\nRuns left out as slow, as their tests say: {left_out} (`--slow` or `--strategy` runs them).\n"),
    }
}

/// What is to be run, and how many runs are left out because they are slow.
fn runs(arguments: &Arguments) -> Result<(Vec<Run>, usize), BadInput> {
    let (mut runs, mut left_out) = (Vec::new(), 0);
    let tests = suite::load(&arguments.tests)?;
    let tests_named = !arguments.tests.is_empty();
    for test in &tests {
        // A test with a planted bug is not a test of the library; it is run where one asks for it to see its report.
        if test.litmus.is_mutation() && arguments.replay.is_none() {
            if tests_named {
                let name = &test.asked_as;
                return Err(BadInput::new(format!("a bug is planted in {name}: `lazytlb bugs {name}` looks for it")));
            }
            continue;
        }
        let (settings, slow) = arguments.asked.settings_of(&test.litmus, arguments.slow);
        if tests_named && settings.is_empty() && slow == 0 {
            return Err(nothing_to_run(core::slice::from_ref(test), arguments.slow));
        }
        left_out += slow;
        runs.extend(settings.into_iter().map(|setting| Run { test: test.clone(), setting }));
    }
    if runs.is_empty() {
        return Err(nothing_to_run(&tests, arguments.slow));
    }
    Ok((runs, left_out))
}

/// Nothing is left of what was asked for.
fn nothing_to_run(tests: &[Test], slow: bool) -> BadInput {
    let why = match (tests, slow) {
        ([Test { asked_as, .. }], true) => format!("{asked_as} does not say that it is slow there"),
        (_, true) => "no test says that it is slow there".to_owned(),
        ([Test { asked_as, litmus }], false) => {
            let machines = litmus.machines().join(", ");
            let memories = litmus.memories().iter().map(|memory| memory.name()).collect::<Vec<_>>().join(", ");
            let knows = match litmus {
                Litmus::Switches(litmus) if litmus.program.accesses() => "; `weak` knows no user accesses",
                Litmus::Switches(_) => "",
                Litmus::LazyMmu(_) => "; it is a test of lazy MMU mode (`--generation`, `--backend`)",
                Litmus::Notifier(_) => "; it is a test of MMU notifiers (`--walks`, `--client`)",
            };
            format!("{asked_as} is for {machines}, under {memories}{knows}")
        }
        (_, false) => {
            let bugs = "or a bug is planted in each (see `lazytlb bugs`)";
            format!("no test is for the machines and memory models that were asked for, {bugs}")
        }
    };
    BadInput::new(format!("nothing to run: {why}"))
}

/// A replay as `--json` has it.
#[derive(Serialize)]
struct Replayed {
    /// The gravest of what was found, and all of it in words.
    verdict: Option<&'static str>,
    found: Vec<String>,
    steps: u64,
    /// The report, if there is something to report.
    report: Option<String>,
}

fn replay(runs: &[Run], file: &Path, json: bool) -> Result<bool> {
    let [run] = runs else {
        return Err(BadInput::new(format!(
            "a schedule is of one test under one strategy: {} runs fit; name one test, --strategy, --memory and --machine (or --generation and --backend, or --walks)",
            runs.len()
        ))
        .into());
    };
    let name = file.display();
    let bytes = fs::read(file).map_err(|error| BadInput::new(format!("{name}: {error}")))?;
    let text = suite::text_of(bytes, &name)?;
    let schedule: Schedule = text.parse().map_err(|error| BadInput::new(format!("{name}:{error}")))?;
    let model = run.test.litmus.model(&run.setting);
    let recording = model.replay(&schedule).map_err(|error| BadInput::new(format!("{name}:{error}")))?;
    let found = recording.verdicts.iter().max_by_key(|verdict| verdict.kind.gravity());
    let steps = schedule.steps();
    let report = found.map(|verdict| model.report(&Found { verdict: verdict.clone(), schedule }, None)).transpose()?;
    if json {
        crate::print_json(&Replayed {
            verdict: found.map(|verdict| verdict.kind.name()),
            found: recording.verdicts.iter().map(ToString::to_string).collect(),
            steps,
            report,
        })?;
    } else {
        let nothing = "the schedule runs to its end, and nothing is found";
        crate::print(&format!("{}\n", report.as_deref().unwrap_or(nothing)))?;
    }
    Ok(found.is_none())
}
