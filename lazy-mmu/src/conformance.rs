//! Programs of calls with what must come of them, and what a generation makes of them.
//!
//! [`CASES`] has the sequence that Linux tests itself with (suite `lazy_mmu_mode`, ee628d9cc8d5, which observes no more than whether
//! the mode is active) and twenty more. What is written down as expected is the merged generation's. [`run`] runs any generation
//! and judges it by what all have in common:
//!
//! * the architecture is entered, flushed any number of times, left, and so on: never entered twice, never flushed or left without;
//! * behind a disable, and while paused, all is in force that was changed before;
//! * in the end the mode is off.
//!
//! Nothing here allocates: a kernel can run it on itself.

use core::cell::Cell;
use core::fmt;

use crate::arch::{LazyMmuArch, Warning};
use crate::generations::Generation;

use Call::{Disable, Enable, EnableWithPtes, IrqEnter, IrqExit, Pause, Resume};
use Callback::{Enter, EnterWithPtes as EnterPtes, Flush, Leave};

/// A call of a program.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Call {
    /// `lazy_mmu_mode_enable`.
    Enable,
    /// `lazy_mmu_mode_enable_with_ptes`.
    EnableWithPtes,
    /// `lazy_mmu_mode_disable`.
    Disable,
    /// `lazy_mmu_mode_pause`.
    Pause,
    /// `lazy_mmu_mode_resume`.
    Resume,
    /// An interrupt begins.
    IrqEnter,
    /// It ends.
    IrqExit,
}

/// A callback of the architecture.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Callback {
    /// `arch_enter_lazy_mmu_mode`.
    Enter,
    /// `arch_enter_lazy_mmu_mode_with_ptes`.
    EnterWithPtes,
    /// `arch_leave_lazy_mmu_mode`.
    Leave,
    /// `arch_flush_lazy_mmu_mode`.
    Flush,
}

impl fmt::Display for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Enter => "enter",
            EnterPtes => "enter_with_ptes",
            Leave => "leave",
            Flush => "flush",
        })
    }
}

/// A program, and what comes of it in the merged generation.
#[derive(Debug)]
pub struct Case {
    /// What it is called.
    pub name: &'static str,
    /// What it is about.
    pub what: &'static str,
    /// The calls: `e` enable, `h` enable with a hint, `d` disable, `p` pause, `r` resume, `+` and `-` the ends of an interrupt;
    /// `e*3` is `e` three times.
    pub calls: &'static str,
    /// The counters at the end, enabled and paused.
    pub counts: (u8, u8),
    /// Whether the mode is active at the end.
    pub is_active: bool,
    /// The callbacks, likewise, by their names.
    pub callbacks: &'static str,
    /// What is warned of, in this order.
    pub warnings: &'static [Warning],
}

/// The programs. T20, an architecture without the mode, is not one: with [`Unsupported`](crate::generations::Unsupported) all of them
/// do nothing.
pub const CASES: &[Case] = &[
    Case {
        name: "KUnit",
        what: "nesting, a pause, sections and a pause in it",
        calls: "e e d p e d p r r d",
        counts: (0, 0),
        is_active: false,
        callbacks: "enter flush leave enter leave",
        warnings: &[],
    },
    Case {
        name: "T1",
        what: "a pause in a section, a section in that",
        calls: "e e p r d d",
        counts: (0, 0),
        is_active: false,
        callbacks: "enter leave enter flush leave",
        warnings: &[],
    },
    Case {
        name: "T2",
        what: "a pause of nothing",
        calls: "p r",
        counts: (0, 0),
        is_active: false,
        callbacks: "",
        warnings: &[],
    },
    Case {
        name: "T3",
        what: "a section in a pause",
        calls: "p e d r",
        counts: (0, 0),
        is_active: false,
        callbacks: "",
        warnings: &[],
    },
    Case {
        name: "T4",
        what: "a pause in a pause",
        calls: "e p p r r d",
        counts: (0, 0),
        is_active: false,
        callbacks: "enter leave enter leave",
        warnings: &[],
    },
    Case {
        name: "T5",
        what: "KASAN, two entries",
        calls: "e p r p r d",
        counts: (0, 0),
        is_active: false,
        callbacks: "enter leave enter leave enter leave",
        warnings: &[],
    },
    Case {
        name: "T6",
        what: "an interrupt in a section",
        calls: "e + e d p r - d",
        counts: (0, 0),
        is_active: false,
        callbacks: "enter leave",
        warnings: &[],
    },
    Case {
        name: "T7",
        what: "all in an interrupt",
        calls: "+ e e d d -",
        counts: (0, 0),
        is_active: false,
        callbacks: "",
        warnings: &[],
    },
    Case {
        name: "T8",
        what: "enabled outside of an interrupt, disabled inside",
        calls: "e + d -",
        counts: (1, 0),
        is_active: true,
        callbacks: "enter",
        warnings: &[],
    },
    Case {
        name: "T9",
        what: "disable without enable",
        calls: "d",
        counts: (255, 0),
        is_active: true,
        callbacks: "flush",
        warnings: &[Warning::DisableUnderflow],
    },
    Case {
        name: "T10",
        what: "and then enable",
        calls: "d e",
        counts: (0, 0),
        is_active: false,
        callbacks: "flush",
        warnings: &[Warning::DisableUnderflow, Warning::EnableOverflow],
    },
    Case {
        name: "T11",
        what: "resume without pause",
        calls: "e r d",
        counts: (1, 255),
        is_active: false,
        callbacks: "enter",
        warnings: &[Warning::ResumeUnderflow],
    },
    Case {
        name: "T12",
        what: "a section that ends in a pause",
        calls: "e p d r",
        counts: (1, 0),
        is_active: true,
        callbacks: "enter leave enter",
        warnings: &[],
    },
    Case {
        name: "T13",
        what: "a section that begins in a pause",
        calls: "p e r d",
        counts: (255, 0),
        is_active: true,
        callbacks: "flush",
        warnings: &[Warning::DisableUnderflow],
    },
    Case {
        name: "T14",
        what: "256 sections",
        calls: "e*256",
        counts: (0, 0),
        is_active: false,
        callbacks: "enter",
        warnings: &[Warning::EnableOverflow],
    },
    Case {
        name: "T15",
        what: "255 sections, and their ends",
        calls: "e*255 d*255",
        counts: (0, 0),
        is_active: false,
        callbacks: "enter flush*254 leave",
        warnings: &[],
    },
    Case {
        name: "T16",
        what: "256 pauses in a section",
        calls: "e p*256",
        counts: (1, 0),
        is_active: true,
        callbacks: "enter leave",
        warnings: &[Warning::PauseOverflow],
    },
    Case {
        name: "T17",
        what: "a section in one with a hint",
        calls: "h e d d",
        counts: (0, 0),
        is_active: false,
        callbacks: "enter_with_ptes flush leave",
        warnings: &[],
    },
    Case {
        name: "T18",
        what: "a hint in a section",
        calls: "e h d d",
        counts: (0, 0),
        is_active: false,
        callbacks: "enter flush leave",
        warnings: &[],
    },
    Case {
        name: "T19",
        what: "a pause in one with a hint",
        calls: "h p r d",
        counts: (0, 0),
        is_active: false,
        callbacks: "enter_with_ptes leave enter leave",
        warnings: &[],
    },
];

impl Case {
    /// The calls one by one.
    ///
    /// # Panics
    /// If a word of [`calls`](Self::calls) is none.
    pub fn each_call(&self) -> impl Iterator<Item = Call> {
        each(self.calls, |word| match word {
            "e" => Enable,
            "h" => EnableWithPtes,
            "d" => Disable,
            "p" => Pause,
            "r" => Resume,
            "+" => IrqEnter,
            "-" => IrqExit,
            _ => panic!("no call is written {word}"),
        })
    }

    /// The callbacks one by one.
    ///
    /// # Panics
    /// If a word of [`callbacks`](Self::callbacks) is none.
    pub fn each_callback(&self) -> impl Iterator<Item = Callback> {
        each(self.callbacks, |word| match word {
            "enter" => Enter,
            "enter_with_ptes" => EnterPtes,
            "leave" => Leave,
            "flush" => Flush,
            _ => panic!("no callback is called {word}"),
        })
    }
}

/// What each word stands for, `word*3` three times.
fn each<T: Clone>(text: &'static str, meaning: fn(&str) -> T) -> impl Iterator<Item = T> {
    text.split_whitespace().flat_map(move |item| {
        let (word, times) = item.split_once('*').unwrap_or((item, "1"));
        core::iter::repeat_n(meaning(word), times.parse().expect("a number of times"))
    })
}

/// What is wrong with what a generation did, be it called rightly or not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    /// The architecture was entered while it was in the mode.
    EnteredTwice,
    /// The architecture was flushed or left while it was not in the mode.
    NotEntered,
    /// A disable or a pause returned, and what was changed before is still deferred.
    NotInForce,
    /// In the end the mode is on, for the generic layer or the architecture.
    LeftOn,
}

impl Fault {
    const ALL: [Fault; 4] = [Fault::EnteredTwice, Fault::NotEntered, Fault::NotInForce, Fault::LeftOn];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::EnteredTwice => "enters twice",
            Fault::NotEntered => "leaves or flushes what was not entered",
            Fault::NotInForce => "changes are not in force",
            Fault::LeftOn => "stays on",
        })
    }
}

/// What a generation made of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// The counters at the end, as far as the generation knows them.
    pub counts: (u8, u8),
    /// Whether the mode is active at the end.
    pub is_active: bool,
    /// How often it warned.
    pub warnings: u32,
    /// How often it stopped the machine, or would have.
    pub bugs: u32,
    /// In how many places the mode was off where a section was open and nothing paused: right, but slow.
    pub unbatched: u32,
    faults: u8,
}

impl Outcome {
    /// What was wrong.
    pub fn faults(self) -> impl Iterator<Item = Fault> {
        Fault::ALL.into_iter().filter(move |&fault| self.faults & 1 << fault as u8 != 0)
    }
}

/// What a generation did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It called the architecture.
    Callback(Callback),
    /// It warned.
    Warning(Warning),
    /// It would have stopped the machine.
    Bug(Warning),
}

/// The most sections, or pauses, that may be open at once in a program.
pub const DEEPEST: usize = 256;

/// Runs a program under a generation, on a new task. `watch` is told what the generation does.
///
/// Before each call outside of interrupts a page table is changed, which is deferred if the mode is on.
///
/// # Panics
/// If more than [`DEEPEST`] sections or pauses are open at once, or an interrupt ends that has not begun.
pub fn run<G: Generation>(calls: impl Iterator<Item = Call>, watch: &dyn Fn(Seen)) -> Outcome {
    let judge = Judge::new(watch);
    let task = G::default();
    let mut sections = Stack::default();
    let mut pauses = Stack::default();
    for call in calls {
        judge.change(task.is_active(&judge), sections.depth > 0 && pauses.depth == 0);
        match call {
            Enable => sections.push(task.enable(&judge)),
            EnableWithPtes => sections.push(task.enable_with_ptes(&judge, ())),
            Disable => task.disable(&judge, sections.pop()),
            Pause => pauses.push(task.pause(&judge)),
            Resume => task.resume(&judge, pauses.pop()),
            IrqEnter => judge.interrupts.set(judge.interrupts.get() + 1),
            IrqExit => judge.interrupts.set(judge.interrupts.get() - 1),
        }
        if matches!(call, Disable | Pause) && !judge.in_interrupt() && judge.deferred.get() {
            judge.fault(Fault::NotInForce);
        }
    }
    if task.is_on() || judge.entered.get() {
        judge.fault(Fault::LeftOn);
    }
    Outcome { counts: task.counts(), is_active: task.is_active(&judge), ..judge.outcome.get() }
}

/// What open sections or pauses have to give back, the innermost last.
struct Stack<T> {
    open: [Option<T>; DEEPEST],
    depth: usize,
}

impl<T> Default for Stack<T> {
    fn default() -> Self {
        Stack { open: [const { None }; DEEPEST], depth: 0 }
    }
}

impl<T: Default> Stack<T> {
    fn push(&mut self, value: T) {
        self.open[self.depth] = Some(value);
        self.depth += 1;
    }

    fn pop(&mut self) -> T {
        self.depth = self.depth.saturating_sub(1);
        self.open[self.depth].take().unwrap_or_default()
    }
}

/// The architecture on which programs run: it defers everything, and knows what is wrong.
struct Judge<'a> {
    watch: &'a dyn Fn(Seen),
    interrupts: Cell<u32>,
    entered: Cell<bool>,
    /// Whether something has been changed that is not in force.
    deferred: Cell<bool>,
    outcome: Cell<Outcome>,
}

impl<'a> Judge<'a> {
    fn new(watch: &'a dyn Fn(Seen)) -> Self {
        let outcome = Cell::default();
        Judge { watch, interrupts: Cell::new(0), entered: Cell::new(false), deferred: Cell::new(false), outcome }
    }

    fn update(&self, change: impl FnOnce(&mut Outcome)) {
        let mut outcome = self.outcome.get();
        change(&mut outcome);
        self.outcome.set(outcome);
    }

    fn fault(&self, fault: Fault) {
        self.update(|outcome| outcome.faults |= 1 << fault as u8);
    }

    /// Something is changed; `batches` is whether it should be deferred.
    fn change(&self, is_active: bool, batches: bool) {
        if self.in_interrupt() {
            return;
        }
        let defers = is_active || self.entered.get();
        self.deferred.set(self.deferred.get() || defers);
        self.update(|outcome| outcome.unbatched += u32::from(batches && !defers));
    }

    fn enter(&self, callback: Callback) {
        (self.watch)(Seen::Callback(callback));
        if self.entered.replace(true) {
            self.fault(Fault::EnteredTwice);
        }
    }

    fn in_force(&self, callback: Callback) {
        (self.watch)(Seen::Callback(callback));
        if !self.entered.get() {
            self.fault(Fault::NotEntered);
        }
        self.deferred.set(false);
    }
}

impl LazyMmuArch for Judge<'_> {
    type Ptes = ();

    fn debug_vm(&self) -> bool {
        true
    }
    fn in_interrupt(&self) -> bool {
        self.interrupts.get() > 0
    }
    fn arch_enter_lazy_mmu_mode(&self) {
        self.enter(Enter);
    }
    fn arch_enter_lazy_mmu_mode_with_ptes(&self, (): ()) {
        self.enter(EnterPtes);
    }
    fn arch_leave_lazy_mmu_mode(&self) {
        self.in_force(Leave);
        self.entered.set(false);
    }
    fn arch_flush_lazy_mmu_mode(&self) {
        self.in_force(Flush);
    }
    fn warn(&self, warning: Warning) {
        (self.watch)(Seen::Warning(warning));
        self.update(|outcome| outcome.warnings += 1);
    }
    fn bug(&self, warning: Warning) {
        (self.watch)(Seen::Bug(warning));
        self.update(|outcome| outcome.bugs += 1);
    }
}
