//! What the statements of [`crate::kernel`] do.

use core::ptr::NonNull;

use lazytlb_core::CpuId;
use lazytlb_core::memory::{AtomicWord, Label, LocalWord, Memory, Ordering::*};
use lazytlb_core::mm::{Mm, MmPtr, MmWithUser};
use lazytlb_core::platform::{IrqsOff, Platform, Root};
use lazytlb_machine::{Kind, Machine, ObjectKind, Sim, SimLocal, SimWord};

use super::{KernelInterrupt, KernelStatement};
use crate::accounted::Accounted;
use crate::platform::{Lab, MmData, peek};
use crate::program::{Program, Statement};
use crate::tables::Table;
use crate::world::World;

/// A lock that is held; with interrupts off, [`HELD_IRQ`].
const HELD: usize = 1;
/// A lock that is held with interrupts off.
const HELD_IRQ: usize = 2;

/// What the rest of the kernel keeps in the arena.
#[derive(Debug)]
pub(crate) struct KernelState {
    /// The task on whose stack each CPU runs: `current`, as an interrupt finds it.
    pub(crate) current: &'static [SimLocal<usize>],
    /// Words of user memory.
    words: &'static [SimWord<usize>],
    /// What each CPU read of each word last, plus one; 0 if it has not.
    reads: &'static [SimLocal<usize>],
    locks: &'static [SimWord<usize>],
    /// Each task's copy of a root; 0 for none.
    saved_roots: &'static [SimLocal<usize>],
    /// Whether temporary tables are loaded, for each CPU.
    temporary: &'static [SimLocal<usize>],
    /// Each CPU's id of the one address space.
    pub(super) cids: &'static [SimWord<usize>],
    /// Whether the CPU uses it now.
    pub(super) cids_in_use: &'static [SimLocal<usize>],
}

impl KernelState {
    pub(crate) fn place(machine: &Machine, program: &Program) -> KernelState {
        fn place<T>(machine: &Machine, name: &'static str, count: usize, new: impl Fn() -> T) -> &'static [T] {
            let placed: *const [T] = machine.place_slice(name, ObjectKind::Other, count, |_| new());
            // SAFETY: in the arena, which the model keeps as long as anything that refers to it.
            unsafe { &*placed }
        }
        let local = |name, count| place::<SimLocal<usize>>(machine, name, count, || LocalWord::new(0));
        let shared = |name, count, value| place::<SimWord<usize>>(machine, name, count, || AtomicWord::new(value));
        let (cpus, words) = (program.cpus(), program.kernel.words.len());
        let cids = if program.kernel.cid.is_some() { cpus } else { 0 };
        let current = local("current", cpus);
        for (cpu, current) in current.iter().enumerate() {
            current.poke(program.first(cpu));
        }
        KernelState {
            current,
            words: shared("user", words, 0),
            reads: local("reads", words * cpus),
            locks: shared("spinlock", program.kernel.locks.len(), 0),
            saved_roots: local("saved_ttbr0", program.tasks.len() + cpus),
            temporary: local("temporary", cpus),
            cids: shared("mm_cid", cids, super::cid::VALID),
            cids_in_use: local("mm_cid_in_use", cids),
        }
    }
}

fn this_cpu() -> usize {
    Machine::with(Machine::this_cpu)
}

impl<R: 'static, S> World<R, S>
where
    Lab<R>: Platform<MmData = MmData>,
    S: Accounted<Lab<R>>,
{
    /// Temporary tables do not outlive what loaded them: a script that switches meanwhile asks for what no kernel does.
    pub(crate) fn check_temporary(&self, statement: Statement) {
        use Statement::{Exec, Exit, Migrate, Offline, Switch, UnuseMm, UseMm};
        let changes = matches!(statement, Switch(_) | Migrate(_) | Exit | Exec(_) | UseMm(_) | UnuseMm | Offline);
        if changes && self.kernel.temporary[this_cpu()].peek() != 0 {
            self.script_is_wrong("temporary tables are loaded, and preemption is off".into());
        }
    }

    /// Does a statement.
    pub(crate) fn kernel(&self, task: usize, statement: KernelStatement) {
        use KernelStatement::*;
        match statement {
            UseTemporaryMm(mm) => {
                self.begin_temporary();
                Machine::with(Machine::preempt_disable);
                // SAFETY: preemption is off until the matching statement, and the script holds a user of it.
                unsafe { self.switcher.use_temporary_mm(self.user(mm)) };
                self.kernel.temporary[this_cpu()].poke(mm + 1);
            }
            UnuseTemporaryMm => {
                let loaded = self.kernel.temporary[this_cpu()].peek();
                let Some(mm) = loaded.checked_sub(1) else {
                    self.script_is_wrong("no temporary tables are loaded".into());
                };
                let temporary = self.mm(mm).core().root();
                Machine::with(|machine| {
                    if machine.inspect(|| self.switcher.platform().read_root()) != temporary {
                        machine.fail(Kind::Assertion, "the temporary tables were taken away");
                    }
                });
                // SAFETY: it is what was loaded.
                unsafe { self.switcher.unuse_temporary_mm(self.user(mm)) };
                self.kernel.temporary[this_cpu()].poke(0);
                Machine::with(Machine::preempt_enable);
            }
            TextPoke(mm) => {
                self.begin_temporary();
                irqs_off(|irqs_off| {
                    self.switcher.with_temporary_mm(irqs_off, self.user(mm), |_| {
                        let of_temporary = self.mm(mm).core().root();
                        if irqs_off.platform().read_root() != of_temporary {
                            Machine::with(|machine| {
                                machine.fail(Kind::Assertion, "text is patched through the wrong tables");
                            });
                        }
                    });
                });
            }
            SaveRoot => {
                let root = irqs_off(|irqs_off: &IrqsOff<'_, Lab<R>>| irqs_off.platform().read_root());
                self.kernel.saved_roots[task].poke(root.0);
            }
            LoadRoot(mm) => self.load_by_hand(self.mm(mm).core().root()),
            LoadSavedRoot => match self.kernel.saved_roots[task].peek() {
                0 => self.script_is_wrong("the task has saved no root".into()),
                root => self.load_by_hand(Root(root)),
            },
            StoreUser(word) => {
                self.check_user(task);
                self.kernel.words[word].store(1, Relaxed);
            }
            LoadUser(word) => {
                self.check_user(task);
                let read = self.kernel.words[word].load(Relaxed);
                self.kernel.reads[this_cpu() * self.kernel.words.len() + word].poke(read + 1);
            }
            Membarrier(mm) => self.switcher.membarrier(self.own_user(task, mm)),
            MembarrierOfTasks(mm) => self.membarrier_of_tasks(self.own_user(task, mm)),
            ClearCid(cpu) => self.clear_cid(cpu),
            Lock(lock) => self.lock(lock, HELD),
            LockIrq(lock) => {
                Machine::with(|machine| machine.irq_save(Label::NONE));
                self.lock(lock, HELD_IRQ);
            }
            Unlock(lock) => {
                let word = &self.kernel.locks[lock];
                let held = word.peek();
                if held == 0 {
                    self.script_is_wrong("the lock is not held".into());
                }
                word.store(0, Release);
                Machine::with(|machine| {
                    machine.irq_restore(held == HELD_IRQ);
                    machine.preempt_enable();
                });
            }
            OfflineBorrowing => self.stop_taking_interrupts(),
            OfflineFirst => {
                self.stop_taking_interrupts();
                self.switcher.sched_cpu_wait_empty();
            }
            OfflineLookingEarly => {
                let init_mm = MmPtr::from(self.switcher.init_mm().core());
                let early = self.switcher.cpu(CpuId::new(this_cpu())).active_mm().unwrap_or(init_mm);
                // SAFETY: not; that is the bug.
                unsafe { self.switcher.sched_force_init_mm(|_| early) };
                self.stop_taking_interrupts();
            }
            Leave => irqs_off(|irqs_off| self.switcher.leave_mm(irqs_off)),
            MunmapFreesFirst(mm) => self.munmap(mm, true),
            MmdropTwice(mm) => self.mmdrop_twice(mm),
            WalkLeaders => {
                let cpu = CpuId::new(this_cpu());
                for leader in self.leaders() {
                    if let Some(mm) = self.tasks[leader].mm() {
                        // SAFETY: not; that is the bug. The memory stays in the arena.
                        let core = unsafe { mm.as_ref() };
                        // SAFETY: the kernel's own code for its architecture.
                        unsafe { core.cpumask_of_arch() }.clear_cpu(cpu, Release);
                    }
                }
            }
            WalkLeadersStopped => Machine::with(|machine| machine.stop_machine(|machine| self.walk_stopped(machine))),
            MustBeReaped(mm) => {
                let object = self.named[mm].peek();
                Machine::with(|machine| {
                    // SAFETY: in the arena, and allocated.
                    let users = || if machine.is_live(object) { unsafe { &*object }.core().users() } else { 0 };
                    let users = machine.inspect(users);
                    if users > 0 {
                        let name = &self.program.mms[mm];
                        let message = format!("I10: the contents of mm {name} are still there: it has {users} users");
                        machine.fail(Kind::Assertion, message);
                    }
                });
            }
        }
    }

    /// Does what an interrupt does.
    pub(crate) fn kernel_in_interrupt(&self, what: KernelInterrupt) {
        // SAFETY: the machine runs handlers with interrupts off.
        let irqs_off = || unsafe { IrqsOff::<Lab<R>>::assume(Lab::NEW) };
        match what {
            KernelInterrupt::ReadUser => self.read_user(),
            KernelInterrupt::ReadUserChecked => {
                let current = &self.tasks[self.kernel.current[this_cpu()].get()];
                // SAFETY: it is the task that was interrupted.
                if unsafe { self.switcher.nmi_access_okay(current) } {
                    self.read_user();
                }
            }
            KernelInterrupt::LookIntoParked => {
                let parked = self.switcher.cpu(CpuId::new(this_cpu())).prev_mm();
                // SAFETY: true where a parked borrow owns a reference; elsewhere the statement is there to be caught.
                parked.map(|mm| unsafe { mm.as_ref() }.root());
            }
            KernelInterrupt::Leave => self.switcher.leave_mm(&irqs_off()),
        }
    }

    /// What must not be left at the end.
    pub(crate) fn check_forbidden(&self, machine: &Machine) {
        let kernel = &self.program.kernel;
        let words = kernel.words.len();
        let holds = |read: &super::Read| self.kernel.reads[read.cpu * words + read.word].peek() == read.value + 1;
        for forbidden in kernel.forbidden.iter().filter(|forbidden| forbidden.iter().all(holds)) {
            let read =
                |read: &super::Read| format!("cpu{} read {} as {}", read.cpu, kernel.words[read.word], read.value);
            let all: Vec<String> = forbidden.iter().map(read).collect();
            machine.fail(Kind::Assertion, all.join(", and "));
        }
    }

    fn user(&self, mm: usize) -> &'static MmWithUser<Lab<R>, S> {
        // SAFETY: the script holds a user of it, or the running task does.
        unsafe { NonNull::from(self.mm(mm)).cast().as_ref() }
    }

    /// The running task's mm, which must be this one.
    fn own_user(&self, task: usize, mm: usize) -> &'static MmWithUser<Lab<R>, S> {
        if self.address_of_mm(task) != self.named[mm].peek().addr() {
            self.script_is_wrong(format!("the task does not run on mm {}", self.program.mms[mm]));
        }
        self.user(mm)
    }

    fn address_of_mm(&self, task: usize) -> usize {
        crate::platform::address(peek(|| self.tasks[task].mm()))
    }

    fn check_user(&self, task: usize) {
        if self.address_of_mm(task) == 0 {
            self.script_is_wrong("the task has no user memory".into());
        }
    }

    fn begin_temporary(&self) {
        if self.kernel.temporary[this_cpu()].peek() != 0 {
            self.script_is_wrong("temporary tables are loaded already".into());
        }
    }

    fn load_by_hand(&self, root: Root) {
        // SAFETY: whether the root is still a table is what the model finds out.
        irqs_off(|irqs_off: &IrqsOff<'_, Lab<R>>| unsafe { irqs_off.platform().load_root(root) });
    }

    fn lock(&self, lock: usize, how: usize) {
        Machine::with(Machine::preempt_disable);
        let word = &self.kernel.locks[lock];
        Sim.spin_until(|| word.compare_exchange(0, how, Acquire, Relaxed).ok());
    }

    fn stop_taking_interrupts(&self) {
        Machine::with(|machine| machine.stop_machine(|machine| machine.set_online(machine.this_cpu(), false)));
        self.waits_empty();
    }

    /// The scan of before 618758ed3a4f: kernel threads are not looked at.
    fn membarrier_of_tasks(&self, mm: &MmWithUser<Lab<R>, S>) {
        let wanted = Some(MmPtr::from(mm.core()));
        let me = this_cpu();
        Sim.fence(SeqCst);
        let runs_task = |cpu| {
            let state = self.switcher.cpu(CpuId::new(cpu));
            let runs = state.curr_mm() == wanted;
            let curr = state.curr();
            let task = self.tasks.iter().position(|task| core::ptr::eq(task, curr));
            let is_kthread = task.and_then(|task| self.program.tasks.get(task)).is_none_or(|task| task.mm.is_none());
            runs && !is_kthread
        };
        if (0..self.program.cpus()).filter(|&cpu| cpu != me).any(runs_task) {
            self.switcher.membarrier(mm);
        }
        Sim.fence(SeqCst);
    }

    /// The first task of each address space.
    fn leaders(&self) -> impl Iterator<Item = usize> + '_ {
        let tasks = &self.program.tasks;
        let first = |mm| tasks.iter().position(|task| task.mm == Some(mm));
        (0..self.program.mms.len()).filter_map(first)
    }

    fn walk_stopped(&self, machine: &Machine) {
        let cpu = CpuId::new(machine.this_cpu());
        for leader in self.leaders() {
            let Some(mm) = machine.inspect(|| self.tasks[leader].mm()) else { continue };
            if !machine.is_live(mm.as_ptr()) {
                let message = format!("the walk touches {}, which is freed", self.name_of(mm.as_ptr().addr()));
                machine.fail(Kind::Dereferences, message);
            }
            // SAFETY: in the arena, and allocated.
            let core = unsafe { mm.as_ref() };
            // SAFETY: the kernel's own code for its architecture.
            machine.inspect(|| unsafe { core.cpumask_of_arch() }.clear_cpu(cpu, Release));
        }
    }

    /// Reads the user memory that the hardware is on, and means that of the task that was interrupted.
    fn read_user(&self) {
        let task = self.kernel.current[this_cpu()].get();
        let Some(mm) = self.tasks[task].mm() else { return };
        let root = self.switcher.platform().read_root();
        // The hardware's walk is part of the step that has just been done: no flush completes in the middle of it.
        Machine::with(|machine| {
            let walk = || {
                let mut table: *mut Table = core::ptr::with_exposed_provenance_mut(root.0);
                for _ in 0..3 {
                    // SAFETY: in the arena; what a CPU's walk can come to is checked when it changes.
                    table =
                        unsafe { table.as_ref() }.map_or(core::ptr::null_mut(), |table| table.first().load(Relaxed));
                }
                // SAFETY: in the arena.
                let mm: &Mm<Lab<R>, S> = unsafe { &*mm.as_ptr().cast() };
                !table.is_null() && table != mm.core().data().frame()
            };
            if machine.inspect(walk) {
                let cpu = machine.this_cpu();
                machine.fail(Kind::Assertion, format!("cpu{cpu} reads the user memory of another address space"));
            }
        });
    }
}

/// Runs `f` with interrupts off.
fn irqs_off<R: 'static, T>(f: impl FnOnce(&IrqsOff<'_, Lab<R>>) -> T) -> T
where
    Lab<R>: Platform,
{
    let were_on = Machine::with(|machine| machine.irq_save(Label::NONE));
    // SAFETY: just disabled.
    let result = f(&unsafe { IrqsOff::assume(Lab::NEW) });
    Machine::with(|machine| machine.irq_restore(were_on));
    result
}
