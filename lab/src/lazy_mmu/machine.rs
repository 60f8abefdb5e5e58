//! One CPU and two tasks that run the calls of a script.

use core::any::Any;
use core::cell::RefCell;
use core::ops::Range;

use lazytlb_lazy_mmu::backends::MmuKernel;
use lazytlb_lazy_mmu::conformance::Callback;
use lazytlb_lazy_mmu::{Generation, LazyMmuArch, LazyMmuState, Warning};
use lazytlb_toy_mmu::{Op, ToyMmu};

use super::backend::{self, BackEnd, Switched};
use super::script::{Call, Line};

/// What is to be seen behind a call.
pub(super) struct Row {
    /// Which task runs, 0 or 1.
    pub(super) task: usize,
    /// How often the mode is enabled and paused, as far as the generation knows.
    pub(super) counts: (u8, u8),
    pub(super) in_interrupt: bool,
    pub(super) is_active: bool,
    pub(super) callbacks: Vec<Callback>,
    pub(super) warnings: Vec<String>,
    /// What hardware was asked for.
    pub(super) hardware: Vec<Op>,
    /// What was read.
    pub(super) value: Option<usize>,
    /// Whether the kernel stopped the machine.
    pub(super) stopped: bool,
}

/// A task: its state, and what its open sections and pauses have to give back.
struct Task<G: Generation> {
    state: G,
    sections: Vec<G::Section>,
    pauses: Vec<G::Pause>,
}

impl<G: Generation> Default for Task<G> {
    fn default() -> Self {
        Task { state: G::default(), sections: Vec::new(), pauses: Vec::new() }
    }
}

/// The machine.
pub(super) struct Machine<G: Generation> {
    tasks: [Task<G>; 2],
    current: usize,
    arch: Arch,
}

impl<G: Generation + 'static> Machine<G> {
    /// A new machine with this back end.
    pub(super) fn new(backend: backend::Name) -> Self {
        let arch = Arch { backend: backend.on_new_machine(), callbacks: RefCell::default() };
        let machine = Machine { tasks: Default::default(), current: 0, arch };
        // Where hooks pause who goes, who has not run yet is paused.
        if let (backend::Name::XenX5, Some(state)) = (backend, machine.merged(1)) {
            state.task_lazy_mmu_mode_pause(&machine.arch);
        }
        machine
    }

    /// The state of a task, where it is the merged generation's.
    fn merged(&self, task: usize) -> Option<&LazyMmuState> {
        (&self.tasks[task].state as &dyn Any).downcast_ref()
    }

    /// Runs the calls, up to one at which the kernel stops the machine.
    pub(super) fn run(mut self, lines: &[Line]) -> Vec<Row> {
        let mut rows = Vec::new();
        for line in lines {
            let row = self.step(&line.call);
            let stopped = row.stopped;
            rows.push(row);
            if stopped {
                break;
            }
        }
        rows
    }

    fn step(&mut self, call: &Call) -> Row {
        let (task, arch) = (&mut self.tasks[self.current], &self.arch);
        let mut value = None;
        match call {
            Call::Enable => task.sections.push(task.state.enable(arch)),
            Call::EnableWithPtes(named) => {
                task.sections.push(task.state.enable_with_ptes(arch, (named.start, named.end)));
            }
            Call::Disable => task.state.disable(arch, task.sections.pop().unwrap_or_default()),
            Call::Pause => task.pauses.push(task.state.pause(arch)),
            Call::Resume => task.state.resume(arch, task.pauses.pop().unwrap_or_default()),
            Call::IrqEnter => ToyMmu.irq_enter(),
            Call::IrqExit => ToyMmu.irq_exit(),
            Call::Switch => self.switch(),
            Call::Set { addr, value } => arch.backend.set(*addr, *value),
            Call::Get { addr } => value = Some(arch.backend.get(*addr)),
            Call::Flush => arch.arch_flush_lazy_mmu_mode(),
        }
        let (state, arch) = (&self.tasks[self.current].state, &self.arch);
        ToyMmu.set_active(state.is_on());
        Row {
            task: self.current,
            counts: state.counts(),
            in_interrupt: ToyMmu.in_interrupt(),
            is_active: state.is_active(arch),
            callbacks: arch.callbacks.take(),
            warnings: ToyMmu.warnings(),
            hardware: ToyMmu.ops(),
            value,
            stopped: ToyMmu.is_stopped(),
        }
    }

    /// The CPU goes to the other task.
    fn switch(&mut self) {
        if ToyMmu.preempt_count() > 0 {
            ToyMmu.warn_of("scheduling while atomic: the section keeps its CPU");
        }
        let switched = |number: usize| Switched {
            number,
            is_on: self.tasks[number].state.is_on(),
            merged: self.merged(number),
            callbacks: &self.arch.callbacks,
        };
        let next = 1 - self.current;
        self.arch.backend.switch(&switched(self.current), &switched(next));
        self.current = next;
    }
}

/// The back end, with its callbacks written down.
struct Arch {
    backend: Box<dyn BackEnd>,
    callbacks: RefCell<Vec<Callback>>,
}

impl Arch {
    fn call(&self, callback: Callback, named: Option<Range<usize>>) {
        self.callbacks.borrow_mut().push(callback);
        self.backend.callback(callback, named);
    }
}

impl LazyMmuArch for Arch {
    /// The first entry, and the one behind the last.
    type Ptes = (usize, usize);

    fn debug_vm(&self) -> bool {
        true
    }
    fn in_interrupt(&self) -> bool {
        ToyMmu.in_interrupt()
    }
    fn arch_enter_lazy_mmu_mode(&self) {
        self.call(Callback::Enter, None);
    }
    fn arch_enter_lazy_mmu_mode_with_ptes(&self, (first, end): (usize, usize)) {
        self.call(Callback::EnterWithPtes, Some(first..end));
    }
    fn arch_leave_lazy_mmu_mode(&self) {
        self.call(Callback::Leave, None);
    }
    fn arch_flush_lazy_mmu_mode(&self) {
        self.call(Callback::Flush, None);
    }
    fn warn(&self, warning: Warning) {
        ToyMmu.warn(warning);
    }
    fn bug(&self, warning: Warning) {
        ToyMmu.bug(warning);
    }
}
