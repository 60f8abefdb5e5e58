//! `lazytlb litmus`: runs litmus tests, and replays what they found.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lazytlb_machine::{Found, MemoryModel, Schedule};
use lazytlb_sched_model::{Model, Rules, Strategy};
use serde::Serialize;

use crate::bad_input::BadInput;
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
    /// Only under this strategy; can be repeated. All strategies if not given, but where a test says that it is slow.
    #[arg(long, value_name = "NAME")]
    strategy: Vec<Strategy>,
    /// Only under this memory model: sc, tso or weak. Sc and tso if not given; all with `--slow`.
    #[arg(long, value_name = "MODEL", value_parser = memory)]
    memory: Vec<MemoryModel>,
    /// Only on this machine; all that the test names if not given.
    #[arg(long, value_name = "RULES")]
    machine: Vec<Rules>,
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
    #[arg(long, conflicts_with_all = ["strategy", "memory", "machine", "shard", "report", "replay"])]
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
            test: &litmus.program.name,
            about: litmus.about.trim_end(),
            bug: litmus.bug.as_ref().map(|(number, _)| number.as_str()),
        });
        return crate::print_json(&listed.collect::<Vec<_>>());
    }
    for Test { litmus, .. } in tests {
        crate::print(&format!("{}\n{}\n", litmus.program.name, indent(&litmus.about)))?;
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
    let strategies = if arguments.strategy.is_empty() { Strategy::all().collect() } else { arguments.strategy.clone() };
    let (mut runs, mut left_out) = (Vec::new(), 0);
    let tests = suite::load(&arguments.tests)?;
    let (tests_named, strategies_named) = (!arguments.tests.is_empty(), !arguments.strategy.is_empty());
    for test in &tests {
        let litmus = &test.litmus;
        let of_others = runs.len() + left_out;
        // A test with a planted bug is not a test of the strategies; it is run where one asks for it to see its report.
        if litmus.is_mutation() && arguments.replay.is_none() {
            if tests_named {
                let name = &test.asked_as;
                return Err(BadInput::new(format!("a bug is planted in {name}: `lazytlb bugs {name}` looks for it")));
            }
            continue;
        }
        for &rules in litmus.machines.iter().filter(|&rules| among(rules, &arguments.machine)) {
            let memories: Vec<MemoryModel> = match &arguments.memory[..] {
                [] if arguments.slow => litmus.memories.clone(),
                [] => suite::usual_memories(litmus).collect(),
                asked => litmus.memories.iter().copied().filter(|memory| asked.contains(memory)).collect(),
            };
            for memory in memories {
                let is_slow = |strategy: &&Strategy| litmus.is_slow_under(**strategy, rules, memory);
                let (slow, others): (Vec<_>, Vec<_>) = strategies.iter().partition(is_slow);
                let asked = match (arguments.slow, strategies_named) {
                    (true, _) => slow,
                    (false, true) => strategies.iter().collect(),
                    (false, false) => {
                        left_out += slow.len();
                        others
                    }
                };
                runs.extend(asked.into_iter().map(|&strategy| Run::new(test, strategy, rules, memory)));
            }
        }
        if tests_named && runs.len() + left_out == of_others {
            return Err(nothing_to_run(core::slice::from_ref(test), arguments.slow));
        }
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
            let machines = litmus.machines.iter().map(|rules| rules.name()).collect::<Vec<_>>().join(", ");
            let memories = litmus.memories.iter().map(|memory| memory.name()).collect::<Vec<_>>().join(", ");
            let knows = if litmus.program.accesses() { "; `weak` knows no user accesses" } else { "" };
            format!("{asked_as} is for {machines}, under {memories}{knows}")
        }
        (_, false) => {
            let bugs = "or a bug is planted in each (see `lazytlb bugs`)";
            format!("no test is for the machines and memory models that were asked for, {bugs}")
        }
    };
    BadInput::new(format!("nothing to run: {why}"))
}

fn among<T: PartialEq>(one: &T, wanted: &[T]) -> bool {
    wanted.is_empty() || wanted.contains(one)
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
            "a schedule is of one test under one strategy: {} runs fit; name one test, --strategy, --memory and --machine",
            runs.len()
        ))
        .into());
    };
    let name = file.display();
    let bytes = fs::read(file).map_err(|error| BadInput::new(format!("{name}: {error}")))?;
    let text = suite::text_of(bytes, &name)?;
    let schedule: Schedule = text.parse().map_err(|error| BadInput::new(format!("{name}:{error}")))?;
    let model = Model::new(&run.test.litmus.program, &run.setting);
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
