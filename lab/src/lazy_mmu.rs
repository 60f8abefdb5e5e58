//! `lazytlb lazy-mmu`: lazy MMU mode, call by call.

mod backend;
mod batching;
mod conformance;
mod machine;
mod script;

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::Result;
use comfy_table::{Table, presets};
use lazytlb_lazy_mmu::LazyMmuState;
use lazytlb_lazy_mmu::backends::s390::S390Kernel;
use lazytlb_lazy_mmu::conformance::Callback;
use lazytlb_lazy_mmu::generations::{Counter, CounterSave, Generation, Hooks, Stack, V3, V4};
use lazytlb_lazy_mmu::state::NativeCounter;
use lazytlb_toy_mmu::{Op, TABLE, ToyMmu};
use serde::Serialize;

use crate::bad_input::BadInput;
use machine::{Machine, Row};
use script::{Call, Line};

/// The calls, as `--help` tells them.
const CALLS: &str =
    "A script has one call a line; what follows a # is for readers. Numbers are decimal, or hexadecimal behind 0x.

  enable                     begins a section
  enable-with-ptes ADDR END  the same, and says which entries are about to change
  disable                    ends a section
  pause, resume              the ends of a pause
  irq-enter, irq-exit        the ends of an interrupt; they nest
  switch                     the CPU goes to the other of two tasks, each with a state of its own
  set ADDR VAL               changes an entry of a page table; neighbours have neighbouring numbers
  get ADDR                   reads it, by the back end's own accessor
  flush                      the architecture makes what is deferred take effect

After each line it prints the state of the task that runs, and what the generic layer asked of the architecture.";

/// Arguments of `lazytlb lazy-mmu`.
#[derive(clap::Args)]
#[command(after_help = CALLS)]
pub(crate) struct Arguments {
    /// The script; standard input if it is `-` or not given.
    script: Option<PathBuf>,
    /// Which generation of the API.
    #[arg(long, value_enum, default_value = "merged", value_name = "NAME")]
    generation: Name,
    /// What the architecture defers.
    #[arg(long, value_enum, default_value = "none", value_name = "NAME")]
    backend: backend::Name,
    /// Prints what all generations make of the bundled programs, instead of running a script.
    #[arg(long, conflicts_with_all = ["script", "generation", "backend"])]
    conformance: bool,
    /// Counts what hardware is asked for when entries are changed in a section, and one by one, instead of running a script.
    #[arg(long, conflicts_with_all = ["script", "generation", "backend", "conformance"])]
    batching: bool,
    /// Prints one JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// A generation of the API, in the order of their coming.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Name {
    /// Before October 2025: the architecture's hooks alone, as arm64 had them last.
    #[value(alias = "g0")]
    Hooks,
    /// The same, with arm64's warning of nested sections.
    HooksStrict,
    /// v1 and v2: the caller keeps what enable returns.
    #[value(alias = "g1", alias = "v1", alias = "v2")]
    Stack,
    /// Hildenbrand's proposal: a count and a flag, and nothing allowed in a pause.
    #[value(alias = "g1-counter")]
    Counter,
    /// A count that a pause takes away and gives back.
    #[value(alias = "g1-save")]
    CounterSave,
    /// v3: a count and a flag; an overflow stops the machine.
    #[value(alias = "g2")]
    V3,
    /// v4: a count and a flag; an overflow is warned of.
    #[value(alias = "g3")]
    V4,
    /// v5, v6 and Linux 7.0: two counts.
    #[value(alias = "g4", alias = "v5", alias = "v6")]
    Merged,
}

/// Does something with the type of a generation.
trait WithGeneration {
    type Output;
    fn with<G: Generation + 'static>(self) -> Self::Output;
}

impl Name {
    fn with<W: WithGeneration>(self, what: W) -> W::Output {
        match self {
            Name::Hooks => what.with::<Hooks>(),
            Name::HooksStrict => what.with::<Hooks<NativeCounter, true>>(),
            Name::Stack => what.with::<Stack>(),
            Name::Counter => what.with::<Counter>(),
            Name::CounterSave => what.with::<CounterSave>(),
            Name::V3 => what.with::<V3>(),
            Name::V4 => what.with::<V4>(),
            Name::Merged => what.with::<LazyMmuState>(),
        }
    }
}

/// Runs a script.
struct RunScript<'a>(backend::Name, &'a [Line]);

impl WithGeneration for RunScript<'_> {
    type Output = Vec<Row>;
    fn with<G: Generation + 'static>(self) -> Vec<Row> {
        Machine::<G>::new(self.0).run(self.1)
    }
}

/// What `--json` prints for each line.
#[derive(Serialize)]
struct Json<'a> {
    line: usize,
    call: &'static str,
    enable: u8,
    pause: u8,
    in_interrupt: bool,
    active: bool,
    callbacks: Vec<String>,
    warnings: &'a [String],
    /// What `get` has read.
    value: Option<usize>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.conformance {
        return conformance::run(arguments.json);
    }
    if arguments.batching {
        return batching::run(arguments.json);
    }
    let name = arguments.script.as_ref().map_or("-".into(), |path| path.display().to_string());
    let read = match &arguments.script {
        Some(path) if name != "-" => fs::read(path),
        _ => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
        }
    };
    let bytes = read.map_err(|error| BadInput::new(format!("{name}: {error}")))?;
    let lines = script::parse(&name, &bytes)?;
    check(arguments, &name, &lines)?;
    let rows = arguments.generation.with(RunScript(arguments.backend, &lines));
    // A machine that has been stopped by its kernel does not come to the rest of its script.
    let stopped = rows.len() < lines.len() || rows.last().is_some_and(|row| row.stopped);
    if arguments.json {
        let mut text = String::new();
        for (row, line) in rows.iter().zip(&lines) {
            text += &serde_json::to_string(&row.json(line))?;
            text.push('\n');
        }
        crate::print(&text)?;
    } else {
        crate::print(&format!("{}\n", table(&rows, &lines)))?;
    }
    if stopped {
        let line = lines[rows.len() - 1].number;
        eprintln!("{name}:{line}:1: the kernel stops here (BUG)");
    }
    Ok(!stopped)
}

/// What not every back end can do.
fn check(arguments: &Arguments, file: &str, lines: &[Line]) -> Result<(), BadInput> {
    let never = <ToyMmu as S390Kernel<TABLE>>::PTE_NEVER;
    let is_never = |line: &&Line| matches!(line.call, Call::Set { value, .. } if value == never);
    match arguments.backend {
        backend::Name::XenX5 if arguments.generation != Name::Merged => {
            Err(BadInput::new("xen-x5 pauses tasks at a switch as only the merged generation can"))
        }
        backend::Name::S390 => match lines.iter().find(is_never) {
            Some(Line { number, column, text, .. }) => {
                let column = script::words(text).last().map_or(*column, |(column, _)| column);
                Err(BadInput::at(file, *number, column, "s390 marks empty slots of its cache with this value", text))
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

impl Row {
    fn json<'a>(&'a self, line: &Line) -> Json<'a> {
        Json {
            line: line.number,
            call: line.call.name(),
            enable: self.counts.0,
            pause: self.counts.1,
            in_interrupt: self.in_interrupt,
            active: self.is_active,
            callbacks: self.callbacks.iter().map(Callback::to_string).collect(),
            warnings: &self.warnings,
            value: self.value,
        }
    }
}

fn table(rows: &[Row], lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "line",
        "call",
        "task",
        "enable",
        "pause",
        "interrupt",
        "active",
        "callbacks",
        "hardware",
        "warnings",
        "value",
    ]);
    let yes = |is: bool| (if is { "yes" } else { "" }).to_owned();
    for (row, line) in rows.iter().zip(lines) {
        table.add_row([
            line.number.to_string(),
            line.written(),
            row.task.to_string(),
            row.counts.0.to_string(),
            row.counts.1.to_string(),
            yes(row.in_interrupt),
            yes(row.is_active),
            row.callbacks.iter().map(Callback::to_string).collect::<Vec<_>>().join(", "),
            row.hardware.iter().map(Op::to_string).collect::<Vec<_>>().join(", "),
            row.warnings.join(", "),
            row.value.map_or(String::new(), |value| format!("{value:#x}")),
        ]);
    }
    table
}
