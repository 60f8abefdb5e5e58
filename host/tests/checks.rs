//! What the machine checks is found where it is wrong; and a signal comes where nobody polls.

use std::hint;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::mpsc;
use std::thread;

use lazytlb::core::memory::Label;
use lazytlb::core::mm_switch::{BroadcastFlush, IpiUnlazy};
use lazytlb::core::platform::IrqGuard;
use lazytlb::{LazyTlb, Refcount, Shootdown, Switcher, Task};
use lazytlb_host::wrong::{Leaks, Unprotected};
use lazytlb_host::{Config, Cpu, Finding, Host, HostPlatform, Interrupts, Machine, User};

const SMALL: Config = Config { cpus: 2, mms: 4, interrupts: Interrupts::Polled, never_flushed: false };

/// A task of this mm ran on the CPU and has exited: the CPU borrows it.
fn borrows<P: HostPlatform, S: LazyTlb<P>>(cpu: &Cpu<P, S>, mm: User<P, S>)
where
    Switcher<P, S>: Sync,
{
    let task: &'static Task<P> = Box::leak(Box::new(Task::kthread()));
    // SAFETY: it is new.
    unsafe { task.copy_mm(mm) };
    // SAFETY: the idle task runs, the other one nowhere.
    unsafe { cpu.switch(cpu.idle, task) };
    cpu.walks();
    // SAFETY: it runs.
    unsafe { cpu.machine.switcher.exit_mm(task) };
    // SAFETY: as above.
    unsafe { cpu.switch(task, cpu.idle) };
}

/// CPU 0 borrows an mm, and CPU 1 drops its last user meanwhile; then CPU 0 goes on. Says what was found.
fn freed_while_it_is_borrowed<P: HostPlatform, S: LazyTlb<P>>(
    strategy: S,
    goes_on: fn(&Cpu<P, S>),
) -> (Vec<String>, usize)
where
    Switcher<P, S>: Sync,
    User<P, S>: Send,
{
    let machine = Machine::<P, S>::boot(strategy, SMALL);
    let mm = machine.mm().unwrap();
    let (borrowed, may_drop) = mpsc::channel();
    let dropped = AtomicBool::new(false);
    thread::scope(|scope| {
        let (last, dropped) = (mm.clone(), &dropped);
        scope.spawn(move || {
            let cpu = machine.cpu(0);
            borrows(&cpu, mm);
            borrowed.send(()).unwrap();
            while !dropped.load(SeqCst) {
                cpu.idles();
                thread::yield_now();
            }
            goes_on(&cpu);
            machine.switcher.sched_cpu_wait_empty();
            cpu.offline();
        });
        scope.spawn(move || {
            let cpu = machine.cpu(1);
            may_drop.recv().unwrap();
            drop(last);
            dropped.store(true, SeqCst);
            cpu.offline();
        });
    });
    let (_, left) = machine.made_and_left();
    (machine.found().0.iter().map(ToString::to_string).collect(), left)
}

#[test]
fn a_root_that_is_freed_and_loaded_is_found() {
    type P = Host<BroadcastFlush>;
    let (found, _) = freed_while_it_is_borrowed::<P, _>(Unprotected, |cpu| {
        cpu.walks();
        cpu.looks();
    });
    let expected =
        ["root 1 is freed, and cpu0 has it loaded", "cpu0 walks from the freed root 1", "cpu0 looks into a freed mm"];
    assert_eq!(found, expected);
    let sound = freed_while_it_is_borrowed::<P, _>(Shootdown { debug_shoot_lazies: true }, |cpu| cpu.walks());
    assert_eq!(sound, (Vec::new(), 0));
}

/// It is another one's by then.
#[test]
fn a_root_that_is_used_again_is_not_the_one_that_was_freed() {
    let (found, _) = freed_while_it_is_borrowed::<Host<BroadcastFlush>, _>(Unprotected, |cpu| {
        let again = cpu.machine.mm().unwrap();
        assert_eq!(again.core().root().0, 5, "the same slot of four");
        cpu.walks();
        drop(again);
    });
    assert!(found.contains(&"cpu0 walks from the freed root 1".to_owned()), "{found:?}");
}

#[test]
fn an_mm_that_is_never_freed_is_counted() {
    assert_eq!(freed_while_it_is_borrowed::<Host<BroadcastFlush>, _>(Leaks, |_| ()), (Vec::new(), 1));
    assert_eq!(freed_while_it_is_borrowed::<Host<BroadcastFlush>, _>(Refcount, |_| ()), (Vec::new(), 0));
}

#[test]
fn an_mm_that_is_freed_with_interrupts_off_is_found() {
    let machine = Machine::<Host<BroadcastFlush>, _>::boot(Refcount, Config { cpus: 1, ..SMALL });
    let cpu = machine.cpu(0);
    let mm = machine.mm().unwrap();
    let section = IrqGuard::new(machine.platform(), Label::NONE);
    drop(mm);
    drop(section);
    assert!(machine.found().0.contains(&Finding::FreedIrqsOff { root: 1 }), "{:?}", machine.found());
    cpu.offline();
}

/// A CPU that neither polls nor waits is interrupted all the same.
#[test]
fn a_signal_comes_between_any_two_instructions() {
    let strategy = Shootdown { debug_shoot_lazies: true };
    let machine = Machine::<Host<IpiUnlazy>, _>::boot(strategy, Config { interrupts: Interrupts::Signals, ..SMALL });
    let (mm, last) = (machine.mm().unwrap(), machine.mm().unwrap());
    let (mm, last) = (std::sync::Mutex::new(Some(mm)), std::sync::Mutex::new(Some(last)));
    let (borrowed, dropped) = (AtomicBool::new(false), AtomicBool::new(false));
    machine.run(|cpu| {
        if cpu.index() == 0 {
            let mm = mm.lock().unwrap().take().unwrap();
            *last.lock().unwrap() = Some(mm.clone());
            borrows(cpu, mm);
            borrowed.store(true, SeqCst);
            while !dropped.load(Relaxed) {
                hint::spin_loop();
            }
            machine.switcher.sched_cpu_wait_empty();
        } else {
            while !borrowed.load(Relaxed) {
                hint::spin_loop();
            }
            drop(last.lock().unwrap().take());
            dropped.store(true, SeqCst);
        }
    });
    assert!(machine.kicks() > 0);
    assert_eq!(machine.found(), (Vec::<Finding>::new(), 0));
    assert_eq!(machine.made_and_left().1, 0);
}

/// The other CPUs come to rest all the same.
#[test]
#[should_panic(expected = "its own mistake")]
fn a_life_that_panics_is_told() {
    let machine = Machine::<Host<BroadcastFlush>, _>::boot(Refcount, SMALL);
    machine.run(|cpu| assert_eq!(cpu.index(), 0, "its own mistake"));
}
