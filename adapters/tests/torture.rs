//! The adapters, natively: threads that are CPUs switch to and fro among mms that die all the time. Nobody may be on a freed mm, and
//! all must be freed in the end, whatever the threads' timing is. The library's own strategies go through the same.
//!
//! That the checks can fail is shown by wrong adapters, each stopped by hand where its mistake does harm.

mod threads;

use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Mutex, mpsc};
use std::thread;

use lazytlb::core::mm::CountRef;
use lazytlb::core::part::{Part, PartOf};
use lazytlb::core::{Freeing, Host, MmCore, MmPtr};
use lazytlb::{LazyTlb, Switcher, Task};
use lazytlb_adapters::{AnyLazyTlbAlloc, ArcPerCpu, CrossbeamEpoch};
use threads::{CPUS, Cpu, Machine, Threads, User};

/// Steps of each CPU.
const STEPS: usize = if cfg!(miri) { 60 } else { 4000 };
/// Mms that all CPUs know.
const SHARED: usize = 3;

/// Numbers that are the same each time (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % bound
    }
}

/// The mms that all CPUs know: whoever replaces one drops a user of it, the last one perhaps.
type Pool<S> = [Mutex<User<S>>; SHARED];

/// A CPU's life: two user tasks and the idle task, which of them runs, and what happens next.
fn live<S: LazyTlb<Threads>>(cpu: &Cpu<S>, pool: &Pool<S>, seed: u64)
where
    Switcher<Threads, S>: Sync,
{
    let switcher = cpu.machine.switcher;
    let mut numbers = Numbers(seed);
    let users: [&'static Task<Threads>; 2] = [(); 2].map(|()| &*Box::leak(Box::new(Task::kthread())));
    let mut running = cpu.idle;
    let some = |numbers: &mut Numbers| User::clone(&pool[numbers.below(SHARED)].lock().unwrap());
    for _ in 0..STEPS {
        cpu.idle_around();
        let runs_user = running.mm().is_some();
        match numbers.below(8) {
            // To a user task, which is made if it has exited.
            0..=2 => {
                let next = users[numbers.below(2)];
                if next.mm().is_none() {
                    // SAFETY: it does not run, and has no mm.
                    unsafe { next.copy_mm(some(&mut numbers)) };
                }
                if !std::ptr::eq(running, next) {
                    cpu.switch(running, next);
                    running = next;
                }
            }
            // Idle, borrowing.
            3 | 4 if runs_user => {
                cpu.switch(running, cpu.idle);
                running = cpu.idle;
            }
            3 => switcher.cpu_idle_enter(),
            // The task exits, and borrows what it was on.
            5 if runs_user => {
                // SAFETY: it runs.
                unsafe { switcher.exit_mm(running) };
                cpu.switch(running, cpu.idle);
                running = cpu.idle;
            }
            // SAFETY: it runs.
            6 if runs_user => unsafe { switcher.exec_mmap(running, some(&mut numbers)) },
            // The idle task adopts an mm for a while.
            6 => {
                let mm = some(&mut numbers);
                // SAFETY: it runs, and the user is held here.
                unsafe { switcher.kthread_use_mm(running, &mm) };
                // SAFETY: as above.
                unsafe { switcher.kthread_unuse_mm(running) };
            }
            // An mm is replaced, whoever borrows it.
            _ => {
                let new = cpu.machine.mm();
                let old = std::mem::replace(&mut *pool[numbers.below(SHARED)].lock().unwrap(), new);
                drop(old);
            }
        }
        cpu.look();
    }
    // To rest: all exits, and nothing is borrowed.
    for user in users.into_iter().filter(|user| user.mm().is_some()) {
        if !std::ptr::eq(running, user) {
            cpu.switch(running, user);
        }
        // SAFETY: it runs now.
        unsafe { switcher.exit_mm(user) };
        cpu.switch(user, cpu.idle);
        running = cpu.idle;
    }
    switcher.sched_cpu_wait_empty();
}

/// Lets all CPUs live, and looks at what is left.
fn torture<S: LazyTlb<Threads>>(strategy: S)
where
    Switcher<Threads, S>: Sync,
    User<S>: Send,
{
    let name = strategy.name();
    let machine = Machine::boot(strategy);
    let pool: Pool<S> = std::array::from_fn(|_| Mutex::new(machine.mm()));
    let (booted, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for index in 0..CPUS {
            let (pool, booted, done) = (&pool, &booted, &done);
            scope.spawn(move || {
                let cpu = machine.cpu(index);
                // Nobody sends an interrupt to a CPU that is not there yet, nor is gone while others may wait for it.
                let wait_for_all = |count: &AtomicUsize| {
                    count.fetch_add(1, SeqCst);
                    // The worker has come for the last time: it might wait for a CPU that leaves this loop.
                    while count.load(SeqCst) < CPUS {
                        machine.platform.poll();
                        thread::yield_now();
                    }
                };
                wait_for_all(booted);
                live(&cpu, pool, 0x9e37_79b9 + index as u64);
                wait_for_all(done);
                cpu.offline();
            });
        }
    });
    // One CPU is left, and the rest of the users.
    let cpu = machine.cpu(0);
    drop(pool);
    // Nobody borrows any more, so one visit of the worker is enough, when all times that it was asked for have come.
    machine.platform.time_passes(1_000_000);
    machine.switcher.collect();
    cpu.offline();
    assert_eq!(machine.found(), Vec::<String>::new(), "{name}");
    assert_eq!(machine.left(), 0, "{name}: mms that were never freed");
}

#[test]
fn crossbeam_epoch() {
    torture(CrossbeamEpoch::default());
    torture(CrossbeamEpoch { evict_at_idle: true });
}

#[test]
fn arc_per_cpu() {
    torture(ArcPerCpu);
}

#[test]
fn whatever_is_chosen_at_boot() {
    AnyLazyTlbAlloc::all().for_each(torture);
}

/// A strategy that does as another one does, but for one step.
macro_rules! wrong {
    ($(#[$doc:meta])* $wrong:ident($right:ident): |$self:ident, $host:ident, $this:ident, $mm:ident| $activate:block) => {
        $(#[$doc])*
        struct $wrong($right);

        impl PartOf<$wrong, Threads> for $right {
            fn of_cpu(whole: &<$wrong as LazyTlb<Threads>>::CpuState) -> &<Self as LazyTlb<Threads>>::CpuState {
                whole
            }

            fn of_mm(whole: &<$wrong as LazyTlb<Threads>>::MmState) -> &<Self as LazyTlb<Threads>>::MmState {
                whole
            }

            fn of_shared(whole: &<$wrong as LazyTlb<Threads>>::Shared) -> &<Self as LazyTlb<Threads>>::Shared {
                whole
            }
        }

        impl LazyTlb<Threads> for $wrong {
            type CpuState = <$right as LazyTlb<Threads>>::CpuState;
            type MmState = <$right as LazyTlb<Threads>>::MmState;
            type Shared = <$right as LazyTlb<Threads>>::Shared;

            fn name(&self) -> &'static str {
                stringify!($wrong)
            }

            fn activate_mm(
                &$self,
                $host: &impl Host<Threads, Self>,
                $this: &Self::CpuState,
                $mm: Option<&MmCore<Threads>>,
            ) $activate

            fn mmgrab_lazy_tlb(&self, platform: Threads, this: &Self::CpuState, shared: &Self::Shared, mm: &MmCore<Threads>) {
                self.0.mmgrab_lazy_tlb(platform, this, shared, mm);
            }

            fn leave_lazy_tlb(&self, platform: Threads, this: &Self::CpuState) {
                self.0.leave_lazy_tlb(platform, this);
            }

            fn switch_tail(&self, platform: Threads, this: &Self::CpuState) -> Option<CountRef<Threads>> {
                self.0.switch_tail(platform, this)
            }

            fn mm_users_zero(&self, host: &impl Host<Threads, Self>, mm: &MmCore<Threads>) {
                self.0.mm_users_zero(&Part::new(host), mm);
            }

            fn cleanup_lazy_tlbs(&self, host: &impl Host<Threads, Self>, mm: MmPtr<Threads>) -> Freeing {
                self.0.cleanup_lazy_tlbs(&Part::new(host), mm)
            }

            fn borrow_is_over(&self, host: &impl Host<Threads, Self>) {
                self.0.borrow_is_over(&Part::new(host));
            }

            fn collect(&self, host: &impl Host<Threads, Self>) {
                self.0.collect(&Part::new(host));
            }
        }
    };
}

wrong! {
    /// Unpins when the next mm comes, and its root is not loaded yet.
    UnpinsEarly(CrossbeamEpoch): |self, host, this, _mm| {
        self.0.leave_lazy_tlb(host.platform(), this);
    }
}

wrong! {
    /// Drops the former mm when the next one has taken its place, and its root is not loaded yet (C2).
    DropsEarly(ArcPerCpu): |self, host, this, mm| {
        self.0.activate_mm(&Part::new(host), this, mm);
        if let Some(reference) = self.0.switch_tail(host.platform(), this) {
            host.mmdrop(reference);
        }
    }
}

/// CPU 0 borrows the first mm and goes on to the second. Just before it loads the second's root it stops, until CPU 1 has put the
/// last user of the first and has freed what it could. Says what was found.
fn freed_just_before_the_load<S: LazyTlb<Threads>>(strategy: S) -> Vec<String>
where
    Switcher<Threads, S>: Sync,
    User<S>: Send,
{
    let machine = Machine::boot(strategy);
    let (first, second) = (machine.mm(), machine.mm());
    let of_second = second.core().root().0;
    let ((stops, stopped), (goes_on, may_go_on)) = (mpsc::channel(), mpsc::channel());
    let (stops, may_go_on) = (Mutex::new(stops), Mutex::new(may_go_on));
    machine.before_load(move |cpu, root| {
        if (cpu, root) == (0, of_second) {
            stops.lock().unwrap().send(()).unwrap();
            may_go_on.lock().unwrap().recv().unwrap();
        }
    });
    let cpu = machine.cpu(0);
    let (task, other) = (&*Box::leak(Box::new(Task::kthread())), &*Box::leak(Box::new(Task::kthread())));
    // SAFETY: both are new.
    unsafe { task.copy_mm(first.clone()) };
    // SAFETY: as above.
    unsafe { other.copy_mm(second) };
    thread::scope(|scope| {
        scope.spawn(move || {
            let _cpu = machine.cpu(1);
            stopped.recv().unwrap();
            drop(first);
            machine.switcher.collect();
            goes_on.send(()).unwrap();
        });
        cpu.switch(cpu.idle, task);
        // SAFETY: it runs.
        unsafe { machine.switcher.exit_mm(task) };
        cpu.switch(task, cpu.idle);
        cpu.switch(cpu.idle, other);
    });
    let found = machine.found();
    // SAFETY: it runs.
    unsafe { machine.switcher.exit_mm(other) };
    cpu.switch(other, cpu.idle);
    machine.switcher.sched_cpu_wait_empty();
    machine.switcher.collect();
    assert_eq!(machine.left(), 0);
    found
}

#[test]
fn an_adapter_that_lets_go_before_the_mmu_has_left_is_caught() {
    let caught = ["root 1 is freed, and cpu0 has it loaded"];
    assert_eq!(freed_just_before_the_load(UnpinsEarly(CrossbeamEpoch::default())), caught);
    assert_eq!(freed_just_before_the_load(DropsEarly(ArcPerCpu)), caught);
    // As they are meant, at the same moment.
    let nothing: [&str; 0] = [];
    assert_eq!(freed_just_before_the_load(CrossbeamEpoch::default()), nothing);
    assert_eq!(freed_just_before_the_load(ArcPerCpu), nothing);
}
