//! `lazytlb compare`: every strategy side by side, on what is bundled.

use core::time::Duration;
use std::collections::BTreeSet;
use std::io::Cursor;

use anyhow::{Context, Result};
use comfy_table::{Cell, Color, Table, presets};
use lazytlb_mmu_model::{Api, Arch};
use lazytlb_native::{HotPath, strategies};
use lazytlb_notifier_model::{Client, Scheme};
use lazytlb_replay::{Options, Replayer, Report, TasksFile, text};
use lazytlb_sched_model::{Rules, Strategy};
use serde::Serialize;

use crate::kinds::{Litmus, Setting};
use crate::suite::{self, Effort, Row, Run, Verdict};
use crate::{bugs, progress, replay};

/// Arguments of `lazytlb compare`.
///
/// Verdicts over the bundled litmus tests, known bugs found, counts over the bundled traces by the strategies' own code,
/// and native times of the hot paths on this machine.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these strategies, and no lazy MMU mode; can be repeated. All but variants if not given.
    #[arg(long, value_name = "NAME")]
    strategy: Vec<Strategy>,
    /// Only the verdicts over the litmus tests.
    #[arg(long)]
    safety: bool,
    /// Prints one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

/// A bundled trace: its name, the trace, its tasks.
type Bundled = (&'static str, &'static [u8], &'static [u8]);

const TRACES: [Bundled; 2] = [
    ("fork-exit", include_bytes!("../../traces/fork-exit.trace.gz"), include_bytes!("../../traces/fork-exit.tasks")),
    (
        "pipes-threads",
        include_bytes!("../../traces/pipes-threads.trace.gz"),
        include_bytes!("../../traces/pipes-threads.tasks"),
    ),
];

/// What `--json` prints.
#[derive(Serialize)]
struct Json {
    #[serde(flatten)]
    safety: Safety,
    bugs: Vec<bugs::Bug>,
    replay: Vec<replay::Json>,
    native: Vec<Native>,
}

/// What the litmus tests say.
#[derive(Serialize)]
struct Safety {
    litmus: Vec<Row>,
    /// Those of lazy MMU mode: the strategy is the generation of the API, the machine the back end.
    lazy_mmu: Vec<Row>,
    /// Those of MMU notifiers: the strategy is the scheme of walks, the machine what the devices are.
    mmu_notifier: Vec<Row>,
    /// What is left out, because a test says that it is slow there.
    not_run: Vec<NotRun>,
}

/// A run that is left out.
#[derive(Serialize)]
struct NotRun {
    test: String,
    machine: &'static str,
    strategy: &'static str,
    memory: &'static str,
}

/// How long a strategy's hot path takes natively, in nanoseconds.
#[derive(Serialize, Clone)]
struct Native {
    strategy: &'static str,
    path: &'static str,
    median_ns: f64,
    fastest_ns: f64,
    slowest_ns: f64,
}

/// Runs the command; says whether all was as expected.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let compared = if arguments.strategy.is_empty() { Strategy::all().collect() } else { arguments.strategy.clone() };
    let safety = verdicts(&compared, arguments.strategy.is_empty())?;
    let is_safe = safety.rows().all(|row| row.expected);
    if arguments.safety {
        if arguments.json {
            crate::print_json(&safety)?;
        } else {
            crate::print(&safety.text())?;
        }
        return Ok(is_safe);
    }
    let bugs = bugs::find(&bugs::all()?, Effort::default(), false)?;
    let reports: Vec<(&str, Report)> = TRACES.iter().map(|trace| replayed(trace, &compared)).collect::<Result<_>>()?;
    let native =
        native(|name| arguments.strategy.is_empty() || compared.iter().any(|strategy| strategy.name() == name));
    let good = is_safe && bugs.iter().all(|bug| bug.found);
    if arguments.json {
        let replay = reports.iter().map(|(name, report)| replay::Json::new(name, Rules::Ipi, report)).collect();
        crate::print_json(&Json { safety, bugs, replay, native })?;
    } else {
        crate::print(&text_report(&safety, &bugs, &reports, &native))?;
    }
    Ok(good)
}

/// Every bundled test without a planted bug, under every strategy that is compared, where it is not slow; with `others` those of lazy MMU
/// mode and of MMU notifiers, under all that they are for.
fn verdicts(compared: &[Strategy], others: bool) -> Result<Safety> {
    let (mut runs, mut lazy_mmu, mut mmu_notifier, mut not_run) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for test in suite::load(&[])?.into_iter().filter(|test| !test.litmus.is_mutation()) {
        let litmus = match &test.litmus {
            Litmus::Switches(litmus) => litmus,
            Litmus::LazyMmu(_) | Litmus::Notifier(_) if !others => continue,
            Litmus::LazyMmu(litmus) => {
                let settings = litmus.under.iter().map(|&(api, arch)| Setting::LazyMmu(litmus.setting(api, arch)));
                lazy_mmu.extend(settings.map(|setting| Run { test: test.clone(), setting }));
                continue;
            }
            Litmus::Notifier(litmus) => {
                let settings = litmus.schemes.iter().map(|&scheme| Setting::Notifier(litmus.setting(scheme)));
                mmu_notifier.extend(settings.map(|setting| Run { test: test.clone(), setting }));
                continue;
            }
        };
        for &rules in &litmus.machines {
            for memory in test.litmus.usual_memories() {
                for &strategy in compared {
                    if litmus.is_slow_under(strategy, rules, memory) {
                        let test = test.litmus.name().to_owned();
                        let (machine, strategy, memory) = (rules.name(), strategy.name(), memory.name());
                        not_run.push(NotRun { test, machine, strategy, memory });
                    } else {
                        let setting = Setting::Switches(litmus.setting(strategy, rules, memory));
                        runs.push(Run { test: test.clone(), setting });
                    }
                }
            }
        }
    }
    let litmus = suite::explore_all(&runs, Effort::default(), false)?;
    let lazy_mmu = suite::explore_all(&lazy_mmu, Effort::default(), false)?;
    let mmu_notifier = suite::explore_all(&mmu_notifier, Effort::default(), false)?;
    Ok(Safety { litmus, lazy_mmu, mmu_notifier, not_run })
}

fn replayed(&(name, trace, tasks): &Bundled, compared: &[Strategy]) -> Result<(&'static str, Report)> {
    let options =
        Options { strategies: compared.to_vec(), tasks: Some(TasksFile::parse(tasks)?), ..Options::default() };
    let report = Replayer::new(options).run(text::reader(Cursor::new(trace))?, |_| {});
    Ok((name, report.with_context(|| format!("the bundled trace {name}"))?))
}

/// Times each path of each strategy that is wanted. Rounds of all strategies alternate, so that what disturbs one disturbs
/// all.
fn native(wanted: impl Fn(&str) -> bool) -> Vec<Native> {
    const SAMPLES: usize = 15;
    const SAMPLE: Duration = Duration::from_millis(3);
    let mut strategies = strategies::<2>();
    strategies.retain(|(name, _)| wanted(name));
    let bar = progress::bar((HotPath::ALL.len() * SAMPLES) as u64);
    let mut all = Vec::new();
    for path in HotPath::ALL {
        bar.set_message(path.name());
        let mut samples: Vec<Vec<f64>> = vec![Vec::new(); strategies.len()];
        let rounds: Vec<u64> = strategies
            .iter()
            .map(|(_, run)| {
                const TRIAL: u64 = 10_000;
                let each = run(path, TRIAL).as_nanos().max(1) as u64;
                (SAMPLE.as_nanos() as u64 * TRIAL / each).max(1)
            })
            .collect();
        for _ in 0..SAMPLES {
            for (index, (_, run)) in strategies.iter().enumerate() {
                samples[index].push(run(path, rounds[index]).as_nanos() as f64 / rounds[index] as f64);
            }
            bar.inc(1);
        }
        for ((strategy, _), mut samples) in strategies.iter().zip(samples) {
            samples.sort_by(f64::total_cmp);
            all.push(Native {
                strategy,
                path: path.name(),
                median_ns: samples[samples.len() / 2],
                fastest_ns: samples[0],
                slowest_ns: samples[samples.len() - 1],
            });
        }
    }
    bar.finish_and_clear();
    all
}

fn text_report(safety: &Safety, bugs: &[bugs::Bug], reports: &[(&str, Report)], native: &[Native]) -> String {
    let mut text = safety.text();
    let found = bugs.iter().filter(|bug| bug.found).count();
    let tests = bugs.len();
    text += &format!("\nKnown bugs, planted: {found} of {tests} tests find theirs (`lazytlb bugs --all`).\n");
    for (name, report) in reports {
        text += &format!(
            "\nCost on the bundled trace {name} (Linux 6.18, {} CPUs, {} switches), counted by the strategies' own code:\n",
            report.cpus, report.switches
        );
        text += &replay::losses_report(report);
        if let Some(truth) = &report.truth {
            text += &replay::truth_report(truth, false);
        }
        text += &format!("\n{}\n", replay::table(&report.strategies, Rules::Ipi));
    }
    text += &format!(
        "\nNative nanoseconds on this machine, one thread without contention: median (fastest to slowest of 15).\n\n{}\n",
        times(native)
    );
    text
}

impl Safety {
    /// A heading, and a table for the simple rules and one for those of architectures.
    fn text(&self) -> String {
        let tests: BTreeSet<&str> = self.litmus.iter().map(|row| row.test.as_str()).collect();
        format!(
            "Safety: {} litmus tests, all interleavings, SC and TSO. In brackets: a machine that the strategy is not for. Not run: slow.\n\n{}\n\n{}\n{}{}",
            tests.len(),
            self.table(&Rules::SIMPLE),
            self.table(&Rules::OF_ARCHITECTURES),
            self.lazy_mmu(),
            self.mmu_notifier()
        )
    }

    /// The generations of the API, on each architecture.
    fn lazy_mmu(&self) -> String {
        if self.lazy_mmu.is_empty() {
            return String::new();
        }
        let tests: BTreeSet<&str> = self.lazy_mmu.iter().map(|row| row.test.as_str()).collect();
        let apis = Api::ALL.iter().filter(|api| self.lazy_mmu.iter().any(|row| row.strategy == api.name()));
        let apis: Vec<Api> = apis.copied().collect();
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(core::iter::once("lazy MMU mode").chain(apis.iter().map(|api| api.name())));
        for &arch in Arch::ALL {
            let cells = apis.iter().map(|&api| {
                let pair = (api.name(), arch.name());
                let rows: Vec<&Row> = self.lazy_mmu.iter().filter(|row| (row.strategy, row.machine) == pair).collect();
                if rows.is_empty() { Cell::new("") } else { verdict_cell(&rows, 0, api.claims(arch)) }
            });
            table.add_row(core::iter::once(Cell::new(arch.name())).chain(cells));
        }
        format!(
            "\nLazy MMU mode: {} litmus tests, all interleavings. In brackets: what does not claim to be right there.\n\n{table}\n",
            tests.len()
        )
    }

    /// What devices are, under each scheme of walks.
    fn mmu_notifier(&self) -> String {
        if self.mmu_notifier.is_empty() {
            return String::new();
        }
        let tests: BTreeSet<&str> = self.mmu_notifier.iter().map(|row| row.test.as_str()).collect();
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(core::iter::once("devices").chain(Scheme::ALL.iter().map(|scheme| scheme.name())));
        let several = ("several", true);
        for (client, is_right) in Client::ALL.iter().map(|client| (client.name(), client.is_right())).chain([several]) {
            let cells = Scheme::ALL.iter().map(|scheme| {
                let pair = (scheme.name(), client);
                let rows: Vec<&Row> =
                    self.mmu_notifier.iter().filter(|row| (row.strategy, row.machine) == pair).collect();
                verdict_cell(&rows, 0, is_right)
            });
            table.add_row(core::iter::once(Cell::new(client)).chain(cells));
        }
        format!(
            "\nMMU notifiers: {} litmus tests, all interleavings. In brackets: what is known to be wrong.\n\n{table}\n",
            tests.len()
        )
    }

    /// All of them.
    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.litmus.iter().chain(&self.lazy_mmu).chain(&self.mmu_notifier)
    }

    /// For each strategy and machine: how many runs passed, or what was found, and how many are left out. In brackets where the
    /// strategy claims nothing.
    fn table(&self, machines: &[Rules]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(core::iter::once("strategy").chain(machines.iter().map(|rules| rules.name())));
        let of_litmus = self.litmus.iter().map(|row| row.strategy);
        let compared: BTreeSet<&str> = of_litmus.chain(self.not_run.iter().map(|one| one.strategy)).collect();
        for &strategy in Strategy::KNOWN.iter().filter(|strategy| compared.contains(strategy.name())) {
            let cells = machines.iter().map(|&rules| self.cell(strategy, rules));
            table.add_row(core::iter::once(Cell::new(strategy.name())).chain(cells));
        }
        table
    }

    fn cell(&self, strategy: Strategy, rules: Rules) -> Cell {
        let pair = (strategy.name(), rules.name());
        let rows: Vec<&Row> = self.litmus.iter().filter(|row| (row.strategy, row.machine) == pair).collect();
        let not_run = self.not_run.iter().filter(|one| (one.strategy, one.machine) == pair).count();
        verdict_cell(&rows, not_run, strategy.claims(rules))
    }
}

fn verdict_cell(rows: &[&Row], not_run: usize, claimed: bool) -> Cell {
    let count = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let mut kinds: Vec<&str> = rows.iter().flat_map(|row| row.kinds.iter().copied()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut text = match (count(Verdict::Bug), count(Verdict::Incomplete)) {
        (0, 0) => format!("{} pass", rows.len()),
        (0, incomplete) => format!("{incomplete} of {} incomplete", rows.len()),
        (bugs, _) => format!("{bugs} of {}: {}", rows.len(), kinds.join(", ")),
    };
    if not_run > 0 {
        text += &format!("; {not_run} not run");
    }
    match (claimed, count(Verdict::Pass) == rows.len()) {
        (true, true) => Cell::new(text).fg(Color::Green),
        (true, false) => Cell::new(text).fg(Color::Red),
        (false, _) => Cell::new(format!("({text})")).fg(Color::Yellow),
    }
}

fn times(native: &[Native]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut header = vec!["strategy"];
    header.extend(HotPath::ALL.map(HotPath::name));
    table.set_header(header);
    let mut names: Vec<&str> = native.iter().map(|one| one.strategy).collect();
    names.dedup();
    names.truncate(native.len() / HotPath::ALL.len());
    for name in names {
        let mut cells = vec![name.to_owned()];
        for path in HotPath::ALL {
            let one = native.iter().find(|one| (one.strategy, one.path) == (name, path.name()));
            cells.push(one.map_or(String::new(), |one| {
                format!("{:.1} ({:.1} to {:.1})", one.median_ns, one.fastest_ns, one.slowest_ns)
            }));
        }
        table.add_row(cells);
    }
    table
}
