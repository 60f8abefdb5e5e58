//! [`Machine`]: a booted one, and its [`Cpu`]s.

use core::fmt;
use core::panic::AssertUnwindSafe;
use core::ptr::NonNull;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::thread;

use lazytlb::core::memory::Label;
use lazytlb::core::platform::{IrqGuard, PreemptGuard, Root};
use lazytlb::{ARef, IrqsOff, LazyTlb, Mm, MmWithUser, Switcher, Task};

use crate::hardware::{BeforeLoad, Config, Finding, Hardware, INIT_ROOT, Interrupts};
use crate::platform::{HostPlatform, MOST_CPUS, become_cpu};
use crate::signals;

/// A user of an mm.
pub type User<P, S> = ARef<MmWithUser<P, S>>;

/// A booted machine.
pub struct Machine<P: HostPlatform, S: LazyTlb<P>> {
    /// The switch path.
    pub switcher: &'static Switcher<P, S>,
    platform: P,
    idle: Box<[Task<P>]>,
    /// The mms: one for each slot of a root, used again and again.
    mms: Box<[OnceLock<&'static Mm<P, S>>]>,
}

// SAFETY: a task is used by the CPU that runs it; the rest is shared by a kernel's CPUs anyway.
unsafe impl<P: HostPlatform, S: LazyTlb<P>> Sync for Machine<P, S> where Switcher<P, S>: Sync {}

impl<P: HostPlatform, S: LazyTlb<P>> fmt::Debug for Machine<P, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.platform.hardware().fmt(f)
    }
}

impl<P: HostPlatform, S: LazyTlb<P>> Machine<P, S>
where
    Switcher<P, S>: Sync,
{
    /// Boots a machine. It is leaked, as a kernel's own statics would stay.
    ///
    /// # Panics
    /// If there are more than 128 CPUs.
    pub fn boot(strategy: S, config: Config) -> &'static Self {
        let Config { cpus, mms, interrupts, .. } = config;
        assert!(cpus <= MOST_CPUS, "no more than {MOST_CPUS} CPUs");
        if interrupts == Interrupts::Signals {
            signals::install();
        }
        let platform = P::of(Box::leak(Box::new(Hardware::new(config))));
        let init_mm: NonNull<Mm<P, S>> = NonNull::from(Box::leak(Box::<Mm<P, S>>::new_uninit())).cast();
        // SAFETY: init_mm is leaked, and written right below.
        let switcher: &'static _ = Box::leak(Box::new(unsafe { Switcher::new(platform, strategy, init_mm) }));
        // SAFETY: the switcher is leaked too, and the root is never freed.
        let value = unsafe { Mm::new(NonNull::from(switcher), platform, Root(INIT_ROOT), ()) };
        // SAFETY: nobody has used it yet.
        unsafe { init_mm.write(value) };
        let handler: fn(usize) = |switcher| {
            let switcher: *const Switcher<P, S> = std::ptr::with_exposed_provenance(switcher);
            // SAFETY: the handler was set together with the switcher it gets, which is leaked.
            let switcher = unsafe { &*switcher };
            // SAFETY: it runs with interrupts off.
            switcher.on_ipi(&unsafe { IrqsOff::assume(switcher.platform()) });
        };
        let handler = (std::ptr::from_ref(switcher).expose_provenance(), handler);
        assert!(platform.hardware().handler.set(handler).is_ok(), "booted once");
        Box::leak(Box::new(Machine {
            switcher,
            platform,
            idle: (0..cpus).map(|_| Task::kthread()).collect(),
            mms: (0..mms).map(|_| OnceLock::new()).collect(),
        }))
    }

    /// The platform.
    pub fn platform(&self) -> P {
        self.platform
    }

    /// What a CPU does just before it loads a root: for tests that stop it there. It is given the CPU and the root.
    ///
    /// # Panics
    /// If that was said before.
    pub fn before_load(&self, action: impl Fn(usize, usize) + Send + Sync + 'static) {
        let action: BeforeLoad = Box::new(action);
        assert!(self.platform.hardware().before_load.set(action).is_ok(), "said once");
    }

    /// A new mm with one user; `None` if there are as many as there is memory for.
    pub fn mm(&self) -> Option<User<P, S>> {
        let (slot, root) = self.platform.hardware().new_root()?;
        let mm = match self.mms[slot].get() {
            Some(mm) => {
                // SAFETY: the former one was freed, or its slot would not be given.
                unsafe { mm.reinit(Root(root)) };
                mm
            }
            None => self.mms[slot].get_or_init(|| {
                // SAFETY: the switcher is leaked; roots are objects of the hardware's.
                Box::leak(Box::new(unsafe { Mm::new(NonNull::from(self.switcher), self.platform, Root(root), ()) }))
            }),
        };
        // SAFETY: asked once; it stays where it is.
        Some(unsafe { mm.into_user() })
    }

    /// What was found wrong: the first ones, and how many there were.
    pub fn found(&self) -> (Vec<Finding>, usize) {
        self.platform.hardware().found()
    }

    /// How many mms were made, and how many of them are not freed.
    pub fn made_and_left(&self) -> (usize, usize) {
        let hardware = self.platform.hardware();
        let made = hardware.made.load(Relaxed);
        (made, made - hardware.freed.load(Relaxed))
    }

    /// How many interrupts were sent.
    pub fn kicks(&self) -> usize {
        self.platform.hardware().kicks.load(Relaxed)
    }

    /// So many milliseconds are passed over.
    pub fn time_passes(&self, milliseconds: usize) {
        self.platform.hardware().skip(milliseconds);
    }

    /// Runs `life` on each CPU, a thread each, and waits for all; gives what each has returned. When it returns, the CPU must be on its idle task, and
    /// borrow nothing.
    ///
    /// # Panics
    /// If `life` panics.
    pub fn run<R: Send>(&'static self, life: impl Fn(&Cpu<P, S>) -> R + Sync) -> Vec<R> {
        let cpus = self.idle.len();
        let (booted, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // Nobody sends an interrupt to a CPU that is not there yet, nor to one that is gone.
        let wait_for_all = |count: &AtomicUsize| {
            count.fetch_add(1, SeqCst);
            while count.load(SeqCst) < cpus {
                self.stops_for_others();
                self.platform.poll();
                thread::yield_now();
            }
        };
        let (life, wait_for_all, booted, done) = (&life, &wait_for_all, &booted, &done);
        let of_cpu = |index| {
            move || {
                let cpu = self.bring_up(index);
                wait_for_all(booted);
                // Others may wait for its answers, whatever became of it.
                let result = catch_unwind(AssertUnwindSafe(|| life(&cpu)));
                wait_for_all(done);
                cpu.offline();
                result.unwrap_or_else(|panic| resume_unwind(panic))
            }
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..cpus).map(|index| scope.spawn(of_cpu(index))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        })
    }

    /// When all CPUs are gone: drops what is left, and lets the worker come for the last time. Nobody borrows anything any more.
    pub fn finish<T>(&'static self, left: T) {
        let cpu = self.bring_up(0);
        drop(left);
        // All times for which it was asked have come.
        self.time_passes(1_000_000);
        self.switcher.collect();
        cpu.offline();
    }

    /// The calling thread becomes a CPU, on its idle task, for tests that go step by step.
    ///
    /// # Panics
    /// If CPUs are interrupted by signals: nobody knows when a thread that others may signal can end but [`run`](Self::run).
    pub fn cpu(&'static self, cpu: usize) -> Cpu<P, S> {
        assert_eq!(self.platform.hardware().interrupts, Interrupts::Polled, "a thread that others may signal");
        self.bring_up(cpu)
    }

    /// Waits while another CPU goes offline. Context: nothing is disabled, no lock is held.
    fn stops_for_others(&self) {
        let hardware = self.platform.hardware();
        // Once more when it is over: the next one may have taken this CPU for one that has stopped.
        while hardware.stopping.load(SeqCst) != 0 {
            hardware.stopped.fetch_add(1, SeqCst);
            while hardware.stopping.load(SeqCst) != 0 {
                self.platform.poll();
                thread::yield_now();
            }
            hardware.stopped.fetch_sub(1, SeqCst);
        }
    }

    fn bring_up(&'static self, cpu: usize) -> Cpu<P, S> {
        let hardware = self.platform.hardware();
        become_cpu(cpu, hardware);
        hardware.cpus[cpu].thread.store(signals::this_thread(), SeqCst);
        let this = Cpu { machine: self, idle: &self.idle[cpu] };
        // SAFETY: the machine is leaked, and its tasks with it.
        this.irqs_off(|irqs_off| unsafe { self.switcher.sched_init(irqs_off, this.idle) });
        hardware.cpus[cpu].online.store(true, SeqCst);
        this
    }
}

/// A CPU, which is the calling thread.
#[derive(Debug)]
pub struct Cpu<P: HostPlatform, S: LazyTlb<P>> {
    /// Its machine.
    pub machine: &'static Machine<P, S>,
    /// Its idle task.
    pub idle: &'static Task<P>,
}

impl<P: HostPlatform, S: LazyTlb<P>> Cpu<P, S>
where
    Switcher<P, S>: Sync,
{
    /// Its number.
    pub fn index(&self) -> usize {
        self.machine.platform.smp_processor_id().get()
    }

    fn irqs_off<R>(&self, action: impl FnOnce(&IrqsOff<'_, P>) -> R) -> R {
        let section = IrqGuard::new(self.machine.platform, Label::NONE);
        action(&section.irqs_off())
    }

    /// Switches, tail included.
    ///
    /// # Safety
    /// `prev` runs on this CPU, and `next` runs nowhere.
    pub unsafe fn switch(&self, prev: &'static Task<P>, next: &'static Task<P>) {
        let switcher = self.machine.switcher;
        let _pinned = PreemptGuard::new(self.machine.platform);
        let left = self.irqs_off(|irqs_off| {
            // SAFETY: the caller's promise; tasks stay.
            unsafe { switcher.context_switch(irqs_off, prev, next) };
            switcher.finish_task_switch(irqs_off)
        });
        left.mmdrop_lazy_tlb_sched();
    }

    /// The hardware walks the tables that are loaded, as it does for a program or by speculation.
    pub fn walks(&self) {
        self.irqs_off(|irqs_off| self.machine.platform.hardware().walk(irqs_off.cpu().get()));
    }

    /// A kernel thread looks into `active_mm`: what a strategy lets it borrow must be there.
    pub fn looks(&self) {
        self.irqs_off(|irqs_off| {
            let cpu = irqs_off.cpu();
            let active = self.machine.switcher.cpu(cpu).active_mm().expect("booted");
            // SAFETY: memory of mms is never given back.
            let root = unsafe { active.as_ref() }.root().0;
            if !self.machine.platform.hardware().is_alive(root) {
                self.machine.platform.hardware().finds(Finding::LooksIntoFreed { cpu: cpu.get() });
            }
        });
    }

    /// What comes to a CPU by itself: interrupts, another CPU that goes offline, and the worker, which is whoever comes first.
    ///
    /// Context: nothing is disabled, no lock is held.
    pub fn idles(&self) {
        let platform = self.machine.platform;
        self.machine.stops_for_others();
        platform.poll();
        if platform.hardware().work_asked.swap(false, SeqCst) {
            self.machine.switcher.collect();
        }
    }

    /// The CPU goes offline, and comes back: Linux's hotplug thread, `stop_machine` and `sched_init`. It stays if another one
    /// goes: one at a time.
    ///
    /// Context: the idle task; nothing is disabled, no lock is held; in [`Machine::run`].
    pub fn goes_and_comes_back(&self) {
        let (machine, hardware) = (self.machine, self.machine.platform.hardware());
        machine.switcher.sched_cpu_wait_empty();
        let cpu = self.index();
        if hardware.stopping.compare_exchange(0, cpu + 1, SeqCst, SeqCst).is_err() {
            return;
        }
        // Whoever has preemption off may count on this CPU to answer.
        let online = || hardware.cpus.iter().filter(|words| words.online.load(SeqCst)).count();
        while hardware.stopped.load(SeqCst) < online() - 1 {
            machine.platform.poll();
            thread::yield_now();
        }
        hardware.cpus[cpu].online.store(false, SeqCst);
        hardware.stopping.store(0, SeqCst);
        thread::yield_now();
        // It does not come while another one counts who is there.
        while hardware.stopping.compare_exchange(0, cpu + 1, SeqCst, SeqCst).is_err() {
            thread::yield_now();
        }
        machine.bring_up(cpu);
        hardware.stopping.store(0, SeqCst);
    }

    /// The CPU is gone. It borrows nothing, and nobody waits for it.
    pub fn offline(self) {
        self.machine.platform.hardware().cpus[self.index()].online.store(false, SeqCst);
    }
}
