//! A machine whose CPUs are threads, on native memory: what runs at once runs at once.
//!
//! Memory of mms is never given back, so touching a freed one is defined, and found: its canary says so. Interrupts come where a
//! thread polls: where it enables interrupts again, in wait loops, and between the steps of a test.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Mutex, OnceLock};
use std::thread;

use lazytlb::core::MmCore;
use lazytlb::core::memory::{At, Label, Memory};
use lazytlb::core::mm_switch::{BroadcastFlush, BroadcastTlb, FlushRange};
use lazytlb::core::native::Native;
use lazytlb::core::platform::{Clock, Context, IpisInterrupt, MaskCoversLazy, Root, Worker};
use lazytlb::{ARef, CpuId, CpuMask, IrqsOff, LazyTlb, Mm, MmWithUser, Platform, Switcher, Task, Warning};

/// The CPUs of the machine.
pub(crate) const CPUS: usize = 4;
/// The root of `init_mm`.
const INIT_ROOT: usize = 0;
/// What stands in an mm that is alive.
const ALIVE: usize = 0x000a_117e;
/// What stands in one that is freed.
const FREED: usize = 0x6b6b_6b6b;

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
    static IRQS_OFF: Cell<bool> = const { Cell::new(false) };
    static PREEMPT_COUNT: Cell<usize> = const { Cell::new(0) };
    static IN_IRQ: Cell<bool> = const { Cell::new(false) };
}

/// A switch path without its type, and what to call with it.
type Handler = (usize, fn(usize));

/// What a CPU does just before it loads a root: for tests that stop it there. It is given the CPU and the root.
type BeforeLoad = Box<dyn Fn(usize, usize) + Send + Sync>;

/// The hardware, and what is found.
#[derive(Default)]
pub(crate) struct Hardware {
    roots: [AtomicUsize; CPUS],
    kicked: [AtomicBool; CPUS],
    online: [AtomicBool; CPUS],
    jiffies: AtomicUsize,
    work_asked: AtomicBool,
    made: AtomicUsize,
    freed: AtomicUsize,
    handler: OnceLock<Handler>,
    before_load: OnceLock<BeforeLoad>,
    /// Which roots are alive, by number; `init_mm`'s is not among them.
    alive: Mutex<Vec<&'static AtomicBool>>,
    found: Mutex<Vec<String>>,
}

/// What an mm has of the kernel: whether it is alive.
#[derive(Debug)]
pub(crate) struct Canary(AtomicUsize);

/// The platform: a handle to its hardware.
#[derive(Clone, Copy)]
pub(crate) struct Threads(&'static Hardware);

impl Threads {
    fn found(self, what: String) {
        self.0.found.lock().unwrap().push(what);
    }

    /// The interrupt that a CPU has asked this one for, if interrupts are on.
    pub(crate) fn poll(self) {
        let me = CPU.get();
        if IRQS_OFF.get() || !self.0.kicked[me].swap(false, SeqCst) {
            return;
        }
        let &(switcher, handler) = self.0.handler.get().expect("booted");
        IRQS_OFF.set(true);
        IN_IRQ.set(true);
        handler(switcher);
        IN_IRQ.set(false);
        IRQS_OFF.set(false);
    }

    /// The clock goes on.
    pub(crate) fn time_passes(self, ticks: usize) {
        self.0.jiffies.fetch_add(ticks, SeqCst);
    }

    /// `init_mm`'s root has no number.
    fn is_alive(self, root: usize) -> bool {
        root == INIT_ROOT || self.0.alive.lock().unwrap()[root - 1].load(SeqCst)
    }
}

impl Memory for Threads {
    type AtomicUsize = <Native as Memory>::AtomicUsize;
    type AtomicPtr<T> = <Native as Memory>::AtomicPtr<T>;
    type LocalUsize = <Native as Memory>::LocalUsize;
    type LocalPtr<T> = <Native as Memory>::LocalPtr<T>;

    fn fence(self, at: impl Into<At>) {
        Native.fence(at);
    }

    fn spin_hint(self) {
        // There may be fewer processors than CPUs.
        thread::yield_now();
    }
}

// SAFETY: a thread is one CPU for as long as it lives; what interrupts it runs on it, where it polls with interrupts on; free_mm
// only says that the mm is free.
unsafe impl Platform for Threads {
    type Arch = BroadcastFlush;
    type PerCpu<T> = [T; CPUS];
    type MaskWords = [<Native as Memory>::AtomicUsize; 1];
    type IrqFlags = bool;
    type MmData = Canary;

    const DEBUG_VM: bool = true;

    fn nr_cpu_ids(self) -> usize {
        CPUS
    }

    fn smp_processor_id(self) -> CpuId {
        CpuId::new(CPU.get())
    }

    fn cpu_online(self, cpu: CpuId) -> bool {
        self.0.online[cpu.get()].load(SeqCst)
    }

    fn local_irq_save(self, _: Label) -> bool {
        IRQS_OFF.replace(true)
    }

    unsafe fn local_irq_restore(self, flags: bool) {
        IRQS_OFF.set(flags);
        self.poll();
    }

    fn preempt_disable(self) {
        PREEMPT_COUNT.set(PREEMPT_COUNT.get() + 1);
    }

    unsafe fn preempt_enable(self) {
        PREEMPT_COUNT.set(PREEMPT_COUNT.get() - 1);
    }

    fn context(self) -> Context {
        Context {
            in_nmi: false,
            in_hardirq: IN_IRQ.get(),
            in_softirq: false,
            preempt_disabled: PREEMPT_COUNT.get() > 0,
            irqs_disabled: IRQS_OFF.get(),
        }
    }

    unsafe fn load_root(self, Root(root): Root) {
        let me = CPU.get();
        if let Some(before_load) = self.0.before_load.get() {
            before_load(me, root);
        }
        self.0.roots[me].store(root, SeqCst);
        // Whoever frees it says so first and looks at the roots then: one of the two sees the other.
        if !self.is_alive(root) {
            self.found(format!("cpu{me} loads the freed root {root}"));
        }
    }

    fn read_root(self) -> Root {
        Root(self.0.roots[CPU.get()].load(SeqCst))
    }

    fn flush_tlb_local(self) {}

    fn kick(self, targets: &CpuMask<Self>) {
        for target in targets.cpus(Relaxed) {
            self.0.kicked[target.get()].store(true, SeqCst);
        }
    }

    fn relax(self) {
        self.poll();
        self.spin_hint();
    }

    unsafe fn unmap_all(self, _: &MmCore<Self>) {}

    unsafe fn free_tables(self, _: &MmCore<Self>) {}

    unsafe fn free_mm(self, mm: NonNull<MmCore<Self>>) {
        // SAFETY: memory of mms is never given back.
        let mm = unsafe { mm.as_ref() };
        let Root(root) = mm.root();
        if mm.data().0.swap(FREED, SeqCst) != ALIVE {
            self.found(format!("root {root} is freed twice"));
        }
        self.0.alive.lock().unwrap()[root - 1].store(false, SeqCst);
        for (cpu, loaded) in self.0.roots.iter().enumerate() {
            if loaded.load(SeqCst) == root {
                self.found(format!("root {root} is freed, and cpu{cpu} has it loaded"));
            }
        }
        let context = self.context();
        if context.irqs_disabled || context.in_hardirq {
            self.found(format!("root {root} is freed with interrupts off"));
        }
        self.0.freed.fetch_add(1, SeqCst);
    }

    fn warn(self, warning: Warning) {
        self.found(warning.to_string());
    }
}

impl Worker for Threads {
    fn queue_work(self) {
        self.0.work_asked.store(true, SeqCst);
    }
}

impl Clock for Threads {
    fn jiffies(self) -> usize {
        self.0.jiffies.load(SeqCst)
    }

    /// Sooner than asked for does no harm.
    fn queue_work_at(self, _: usize) {
        self.queue_work();
    }
}

impl BroadcastTlb for Threads {
    fn invalidate_broadcast(self, _: &MmCore<Self>, _: &FlushRange) {}
}

// SAFETY: each thread polls in every loop of its own and wherever it enables interrupts.
unsafe impl IpisInterrupt for Threads {}
// SAFETY: BroadcastFlush never takes a CPU out of a mask.
unsafe impl MaskCoversLazy for Threads {}

/// A user of an mm.
pub(crate) type User<S> = ARef<MmWithUser<Threads, S>>;

/// A booted machine: every CPU on its idle task.
pub(crate) struct Machine<S: LazyTlb<Threads>> {
    pub(crate) switcher: &'static Switcher<Threads, S>,
    pub(crate) platform: Threads,
    idle: [Task<Threads>; CPUS],
}

// SAFETY: a task is used by the CPU that runs it.
unsafe impl<S: LazyTlb<Threads>> Sync for Machine<S> {}

impl<S: LazyTlb<Threads>> Machine<S>
where
    Switcher<Threads, S>: Sync,
{
    /// Leaked, as a kernel's own statics would stay.
    pub(crate) fn boot(strategy: S) -> &'static Self {
        let platform = Threads(Box::leak(Box::default()));
        let init_mm: NonNull<Mm<Threads, S>> = NonNull::from(Box::leak(Box::<Mm<Threads, S>>::new_uninit())).cast();
        // SAFETY: init_mm is leaked, and written right below.
        let switcher: &'static _ = Box::leak(Box::new(unsafe { Switcher::new(platform, strategy, init_mm) }));
        // SAFETY: the switcher is leaked too, and the root is never freed.
        let value = unsafe { Mm::new(NonNull::from(switcher), platform, Root(INIT_ROOT), Canary(ALIVE.into())) };
        // SAFETY: nobody has used it yet.
        unsafe { init_mm.write(value) };
        let handler: fn(usize) = |switcher| {
            let switcher: *const Switcher<Threads, S> = std::ptr::with_exposed_provenance(switcher);
            // SAFETY: the handler was set together with the switcher it gets, which is leaked.
            let switcher = unsafe { &*switcher };
            // SAFETY: `poll` runs it with interrupts off.
            switcher.on_ipi(&unsafe { IrqsOff::assume(switcher.platform()) });
        };
        let handler = (std::ptr::from_ref(switcher).expose_provenance(), handler);
        assert!(platform.0.handler.set(handler).is_ok(), "booted once");
        Box::leak(Box::new(Machine { switcher, platform, idle: std::array::from_fn(|_| Task::kthread()) }))
    }

    /// What a CPU does just before it loads a root.
    pub(crate) fn before_load(&self, action: impl Fn(usize, usize) + Send + Sync + 'static) {
        assert!(self.platform.0.before_load.set(Box::new(action)).is_ok(), "set once");
    }

    /// A new mm with one user.
    pub(crate) fn mm(&self) -> User<S> {
        self.platform.0.made.fetch_add(1, SeqCst);
        let root = {
            let mut alive = self.platform.0.alive.lock().unwrap();
            alive.push(Box::leak(Box::new(AtomicBool::new(true))));
            alive.len()
        };
        // SAFETY: the switcher is leaked; roots are numbers.
        let mm = unsafe { Mm::new(NonNull::from(self.switcher), self.platform, Root(root), Canary(ALIVE.into())) };
        let mm: &'static Mm<Threads, S> = Box::leak(Box::new(mm));
        // SAFETY: asked once; it stays where it is.
        unsafe { mm.into_user() }
    }

    /// What was found wrong.
    pub(crate) fn found(&self) -> Vec<String> {
        self.platform.0.found.lock().unwrap().clone()
    }

    /// How many mms were made and are not freed.
    pub(crate) fn left(&self) -> usize {
        self.platform.0.made.load(SeqCst) - self.platform.0.freed.load(SeqCst)
    }

    /// The calling thread becomes a CPU, on its idle task.
    pub(crate) fn cpu(&'static self, cpu: usize) -> Cpu<S> {
        CPU.set(cpu);
        let this = Cpu { machine: self, idle: &self.idle[cpu] };
        // SAFETY: the machine is leaked, and its tasks with it.
        this.irqs_off(|irqs_off| unsafe { self.switcher.sched_init(irqs_off, this.idle) });
        self.platform.0.online[cpu].store(true, SeqCst);
        this
    }
}

/// A CPU, which is the calling thread.
pub(crate) struct Cpu<S: LazyTlb<Threads>> {
    pub(crate) machine: &'static Machine<S>,
    pub(crate) idle: &'static Task<Threads>,
}

impl<S: LazyTlb<Threads>> Cpu<S> {
    fn irqs_off<R>(&self, action: impl FnOnce(&IrqsOff<'_, Threads>) -> R) -> R {
        let platform = self.machine.platform;
        let flags = platform.local_irq_save(Label::NONE);
        // SAFETY: just disabled.
        let result = action(&unsafe { IrqsOff::assume(platform) });
        // SAFETY: saved above, and the token is gone.
        unsafe { platform.local_irq_restore(flags) };
        result
    }

    /// Switches, tail included.
    pub(crate) fn switch(&self, prev: &'static Task<Threads>, next: &'static Task<Threads>) {
        let switcher = self.machine.switcher;
        let left = self.irqs_off(|irqs_off| {
            // SAFETY: the test keeps track of who runs; tasks are leaked.
            unsafe { switcher.context_switch(irqs_off, prev, next) };
            switcher.finish_task_switch(irqs_off)
        });
        self.machine.platform.preempt_disable();
        left.mmdrop_lazy_tlb_sched();
        // SAFETY: disabled above.
        unsafe { self.machine.platform.preempt_enable() };
    }

    /// Looks into `active_mm`, for strategies that keep it alive.
    pub(crate) fn look(&self) {
        self.irqs_off(|irqs_off| {
            let active = self.machine.switcher.cpu(irqs_off.cpu()).active_mm().expect("booted");
            // SAFETY: memory of mms is never given back.
            if unsafe { active.as_ref() }.data().0.load(SeqCst) != ALIVE {
                self.machine.platform.found(format!("cpu{} looks into a freed mm", irqs_off.cpu().get()));
            }
        });
    }

    /// The CPU is gone. It borrows nothing, and nobody waits for it.
    pub(crate) fn offline(self) {
        self.machine.platform.0.online[CPU.get()].store(false, SeqCst);
    }

    /// What comes to a CPU by itself: interrupts, and the worker, which is whoever comes first.
    pub(crate) fn idle_around(&self) {
        let platform = self.machine.platform;
        platform.time_passes(1);
        platform.poll();
        if platform.0.work_asked.swap(false, SeqCst) {
            self.machine.switcher.collect();
        }
    }
}
