//! `lazytlb replay`: a recorded trace through the strategies.

use std::path::PathBuf;
use std::{fs, io};

use anyhow::Result;
use comfy_table::{Table, presets};
use lazytlb_replay::{Disagreement, Options, Replayer, Report, StrategyReport, TasksFile, Truth, text};
use lazytlb_sched_model::{Rules, Strategy};
use serde::Serialize;

use crate::bad_input::BadInput;
use crate::progress;

/// Arguments of `lazytlb replay`.
///
/// Reads the text of tracefs `trace`, of `trace-cmd report` or `perf script`, plain or .gz; `-` is standard input. It
/// needs sched_switch; with sched_process_exec, sched_process_exit and task_newtask (or sched_process_fork) it knows who
/// shares an address space, and with tlb_flush on x86 it checks itself against the kernel's own word.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The trace.
    trace: PathBuf,
    /// Who the tasks at the start are, a line each: number, thread group, 1 for a kernel thread, name. By default the
    /// file beside TRACE that ends in .tasks, if there is one.
    #[arg(long, value_name = "FILE")]
    tasks: Option<PathBuf>,
    /// Only under this strategy; can be repeated. All strategies if not given.
    #[arg(long, value_name = "NAME")]
    strategy: Vec<Strategy>,
    /// The machine's rules: what a flush does to a CPU that is lazy.
    #[arg(long, value_name = "RULES", default_value = "ipi-flush", value_parser = rules)]
    machine: Rules,
    /// Lists every line on which trace and replay do not agree.
    #[arg(long)]
    disagreements: bool,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// The rules that traces are replayed on and paths are counted on.
pub(crate) fn rules(name: &str) -> Result<Rules, String> {
    let known = Rules::SIMPLE;
    let found = known.into_iter().find(|rules| rules.name() == name);
    found.ok_or_else(|| format!("there are: {}", known.map(Rules::name).join(", ")))
}

/// What `--json` prints.
#[derive(Serialize)]
pub(crate) struct Json {
    pub(crate) trace: String,
    machine: &'static str,
    events: u64,
    switches: u64,
    /// Switches that the trace has lost, made up from what came after.
    inferred_switches: u64,
    /// Tasks whose kind or address space had to be guessed.
    inferred_tasks: u64,
    /// How often the trace says that events are missing.
    losses: u64,
    reordered: u64,
    cpus: usize,
    traced_seconds: f64,
    /// How long reading and replaying took.
    seconds: f64,
    /// Null if the trace does not say when roots were loaded.
    pub(crate) truth: Option<JsonTruth>,
    pub(crate) strategies: Vec<JsonStrategy>,
}

#[derive(Serialize)]
pub(crate) struct JsonTruth {
    compared: u64,
    agree: u64,
    unknown: u64,
    observed: u64,
    disagreements: Vec<JsonDisagreement>,
}

#[derive(Serialize)]
struct JsonDisagreement {
    line: u64,
    cpu: u32,
    what: &'static str,
    predicted: bool,
    real: bool,
}

#[derive(Serialize)]
pub(crate) struct JsonStrategy {
    pub(crate) name: &'static str,
    /// Whether the strategy claims to be safe on this machine.
    claimed: bool,
    pub(crate) rmw: u64,
    pub(crate) transfers: u64,
    pub(crate) fences: u64,
    pub(crate) ipis: u64,
    pub(crate) interrupted: u64,
    pub(crate) root_loads: u64,
    died: u64,
    freed: u64,
    most_zombies: u64,
    pub(crate) zombie_byte_seconds: f64,
    mean_reclaim_seconds: f64,
    longest_reclaim_seconds: f64,
    warnings: u64,
}

impl Json {
    pub(crate) fn new(trace: &str, rules: Rules, report: &Report) -> Json {
        Json {
            trace: trace.to_owned(),
            machine: rules.name(),
            events: report.events,
            switches: report.switches,
            inferred_switches: report.inferred_switches,
            inferred_tasks: report.inferred_tasks,
            losses: report.losses,
            reordered: report.reordered,
            cpus: report.cpus,
            traced_seconds: report.traced.as_secs_f64(),
            seconds: report.took.as_secs_f64(),
            truth: report.truth.as_ref().map(|truth| JsonTruth {
                compared: truth.compared,
                agree: truth.agree,
                unknown: truth.unknown,
                observed: truth.observed,
                disagreements: truth.disagreements.iter().map(disagreement).collect(),
            }),
            strategies: report.strategies.iter().map(|one| strategy(one, rules)).collect(),
        }
    }
}

fn disagreement(one: &Disagreement) -> JsonDisagreement {
    let Disagreement { line, cpu, what, predicted, real } = *one;
    JsonDisagreement { line, cpu, what, predicted, real }
}

fn strategy(one: &StrategyReport, rules: Rules) -> JsonStrategy {
    let StrategyReport { strategy, counts } = one;
    JsonStrategy {
        name: strategy.name(),
        claimed: strategy.claims(rules),
        rmw: counts.rmw,
        transfers: counts.transfers,
        fences: counts.fences,
        ipis: counts.ipis,
        interrupted: counts.interrupted,
        root_loads: counts.root_loads,
        died: counts.died,
        freed: counts.freed,
        most_zombies: counts.most_zombies,
        zombie_byte_seconds: counts.zombie_byte_seconds(),
        mean_reclaim_seconds: counts.mean_reclaim_ns() * 1e-9,
        longest_reclaim_seconds: counts.longest_reclaim_ns as f64 * 1e-9,
        warnings: counts.warnings,
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let name = arguments.trace.display().to_string();
    let strategies = if arguments.strategy.is_empty() { Strategy::all().collect() } else { arguments.strategy.clone() };
    let options = Options { strategies, rules: arguments.machine, tasks: tasks(arguments)? };
    let source = if name == "-" { text::reader(io::stdin()) } else { text::open(&arguments.trace) };
    let source = source.map_err(|error| BadInput::new(format!("{name}: {error}")))?;
    let spinner = progress::spinner("lines read");
    let report = Replayer::new(options).run(source, |lines| spinner.set_position(lines));
    spinner.finish_and_clear();
    let report = report.map_err(|error| BadInput::new(error.in_file(&name)))?;
    if arguments.json {
        crate::print_json(&Json::new(&name, arguments.machine, &report))?;
    } else {
        crate::print(&text_report(&report, arguments.machine, arguments.disagreements))?;
    }
    Ok(true)
}

/// The tasks file that is given, or the one beside the trace.
fn tasks(arguments: &Arguments) -> Result<Option<TasksFile>, BadInput> {
    let beside = || {
        let name = arguments.trace.to_str()?;
        let stem = name.strip_suffix(".gz").unwrap_or(name);
        let stem = stem.strip_suffix(".trace").or_else(|| stem.strip_suffix(".txt")).unwrap_or(stem);
        let path = PathBuf::from(format!("{stem}.tasks"));
        path.is_file().then_some(path)
    };
    let Some(path) = arguments.tasks.clone().or_else(beside) else { return Ok(None) };
    let name = path.display().to_string();
    let text = fs::read(&path).map_err(|error| BadInput::new(format!("{name}: {error}")))?;
    TasksFile::parse(&text).map(Some).map_err(|error| BadInput::new(error.in_file(&name)))
}

fn text_report(report: &Report, rules: Rules, disagreements: bool) -> String {
    let mut text = format!(
        "{} events, {} switches on {} CPUs in {:.3} s of the traced machine; read and replayed in {:.3} s\n",
        report.events,
        report.switches,
        report.cpus,
        report.traced.as_secs_f64(),
        report.took.as_secs_f64(),
    );
    text += &losses_report(report);
    if report.inferred_tasks > 0 {
        text += &format!(
            "inferred: what {} tasks are, from their names; a .tasks file would tell (lazytlb replay --help)\n",
            report.inferred_tasks
        );
    }
    if let Some(truth) = &report.truth {
        text += &truth_report(truth, disagreements);
    }
    text += &format!("\n{}\n", table(&report.strategies, rules));
    text
}

/// What the trace does not have; nothing if it is whole.
pub(crate) fn losses_report(report: &Report) -> String {
    if report.inferred_switches + report.losses == 0 {
        return String::new();
    }
    format!(
        "inferred: {} switches that the trace has lost ({} times it says so itself)\n",
        report.inferred_switches, report.losses
    )
}

pub(crate) fn truth_report(truth: &Truth, disagreements: bool) -> String {
    let mut text = format!(
        "truth: {} of {} page-table loads and non-loads as the kernel's own tlb_flush events say ({:.2} %); {} unknown, {} by flushes, taken as they come\n",
        truth.agree,
        truth.compared,
        100.0 * truth.agreement(),
        truth.unknown,
        truth.observed,
    );
    let said = |load: bool| if load { "load" } else { "no load" };
    for one in truth.disagreements.iter().filter(|_| disagreements) {
        text += &format!(
            "  line {}: {} on CPU {}: predicted {}, traced {}\n",
            one.line,
            one.what,
            one.cpu,
            said(one.predicted),
            said(one.real)
        );
    }
    if !disagreements && !truth.disagreements.is_empty() {
        text += "  (--disagreements lists the others)\n";
    }
    text
}

/// Counts side by side.
pub(crate) fn table(strategies: &[StrategyReport], rules: Rules) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "strategy",
        "shared RMWs",
        "transfers",
        "fences",
        "IPIs",
        "interrupted",
        "root loads",
        "zombie kB·s",
        "reclaim, mean",
        "longest",
        "",
    ]);
    for StrategyReport { strategy, counts } in strategies {
        table.add_row([
            strategy.name().to_owned(),
            counts.rmw.to_string(),
            counts.transfers.to_string(),
            counts.fences.to_string(),
            counts.ipis.to_string(),
            counts.interrupted.to_string(),
            counts.root_loads.to_string(),
            format!("{:.3}", counts.zombie_byte_seconds() / 1e3),
            format!("{:.3} ms", counts.mean_reclaim_ns() / 1e6),
            format!("{:.3} ms", counts.longest_reclaim_ns as f64 / 1e6),
            (if strategy.claims(rules) { "" } else { "not safe on this machine" }).to_owned(),
        ]);
    }
    table
}
