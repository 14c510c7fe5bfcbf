//! Daemons that the host has started on this machine, and starts again when they are gone.
//!
//! A [`Kept`] daemon lives several lives, one process each. A life is over when its process has ended and everything that
//! it had said has been read: only then it is known whether it has left or crashed, and whether it had finished a task.
//! These are events; no clock is looked at.
//!
//! Daemons in [reserve](Host::reserve) live while the queue asks for them: see `scale`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::{Host, PeerId, Shared};
use crate::dispatcher::{Event, Farewell};
use crate::loss::Loss;
use crate::process::{Child, Program, Surroundings};
use crate::sys::{self, io_thread};

/// A daemon is not started again after this many crashes without a finished task between them.
pub const MOST_CRASHES: u32 = 5;
/// The same in words.
const _: () = assert!(MOST_CRASHES == 5);
const CRASHES: &str = "5 crashes without a finished task between them";

/// Which daemons are started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Respawn {
    /// None.
    Never,
    /// Those that have crashed: that have not said goodbye.
    Crashed,
    /// Those that have left by their limits, too.
    Always,
}

/// Makes the program of a daemon; its argument is how often it has been started before.
type Make = Box<dyn Fn(u32) -> Program + Send + Sync>;

/// A daemon through all its lives.
struct Kept {
    respawn: Respawn,
    /// It is started when the queue asks for it.
    in_reserve: bool,
    make: Make,
    surroundings: Option<Arc<Surroundings>>,
    state: Mutex<Past>,
}

/// The lives that are over.
#[derive(Default)]
struct Past {
    lives: u32,
    /// Those that have crashed since a task was finished.
    crashes: u32,
}

/// One process of a daemon.
pub(super) struct Life {
    kept: Arc<Kept>,
    state: Mutex<Stage>,
}

#[derive(Default)]
struct Stage {
    /// Its connection, once it has one.
    peer: Option<PeerId>,
    /// Set when the connection is over. It holds `None` if the host has sent the daemon away.
    lost: Option<Option<Farewell>>,
    /// The process has ended.
    exited: Option<Exited>,
}

#[derive(Clone)]
struct Exited {
    pid: u32,
    /// How it has ended, such as "was killed by signal 9".
    how: String,
    connected: bool,
}

/// What the host knows of all daemons that it has started.
#[derive(Default)]
pub(super) struct Keeping {
    /// Lives that are not over.
    alive: usize,
    /// Of these, those that are connected.
    connected: rustc_hash::FxHashMap<PeerId, Arc<Life>>,
    /// The last daemon that was given up; none has come since.
    given_up: Option<Arc<Loss>>,
    /// Daemons in reserve that do not live.
    resting: Vec<Arc<Kept>>,
}

/// What follows from the end of a life.
enum Then {
    Nothing,
    Again,
    /// Back into the reserve.
    Rest,
    GiveUp(Option<PeerId>, Loss),
}

impl Life {
    /// Whether it comes later than others of its host, and has to be set up as they were.
    pub(super) fn is_late(&self) -> bool {
        self.kept.in_reserve || self.kept.state.lock().lives > 0
    }

    /// What follows, if it is over now. Once.
    fn settle(&self) -> Option<Then> {
        let (peer, farewell, exited) = {
            let mut stage = self.state.lock();
            if stage.peer.is_some() && stage.lost.is_none() {
                return None;
            }
            let exited = stage.exited.take()?;
            (stage.peer, stage.lost.flatten(), exited)
        };
        let sent_away = peer.is_some() && farewell.is_none();
        Some(self.kept.decide(peer, farewell, sent_away, &exited))
    }
}

impl Kept {
    fn decide(
        &self,
        peer: Option<PeerId>,
        farewell: Option<Farewell>,
        sent_away: bool,
        exited: &Exited,
    ) -> Then {
        let mut past = self.state.lock();
        past.lives += 1;
        let left = farewell.is_some_and(|f| f.left);
        let never_connected =
            past.lives == 1 && peer.is_none() && !exited.connected && !self.in_reserve;
        let again = match self.respawn {
            // The first launch of a program that cannot run is reported to the one who has launched it.
            _ if sent_away || never_connected => false,
            _ if self.in_reserve => true,
            Respawn::Never => false,
            Respawn::Crashed => !left,
            Respawn::Always => true,
        };
        if !again {
            return Then::Nothing;
        }
        if left || farewell.is_some_and(|f| f.finished > 0) {
            past.crashes = 0;
        }
        past.crashes += u32::from(!left);
        if past.crashes < MOST_CRASHES {
            return if self.in_reserve {
                Then::Rest
            } else {
                Then::Again
            };
        }
        let loss = Loss::new(peer.unwrap_or_default(), sys::node_name(), exited.pid);
        loss.tell(format!(
            "was the last daemon, and is not started again after {CRASHES}: it {}",
            exited.how
        ));
        Then::GiveUp(peer, loss)
    }
}

impl Host {
    /// Starts a process that will dial one of the URLs, and is started again as `respawn` says. `make` makes its program:
    /// its argument is how often it has been started before. It is called on the I/O thread, too.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn keep(
        &self,
        respawn: Respawn,
        make: impl Fn(u32) -> Program + Send + Sync + 'static,
    ) -> std::io::Result<Arc<Child>> {
        let surroundings = match respawn {
            Respawn::Never => None,
            Respawn::Crashed | Respawn::Always => self.0.surroundings(),
        };
        let kept = Arc::new(Kept {
            respawn,
            in_reserve: false,
            make: Box::new(make),
            surroundings,
            state: Mutex::default(),
        });
        let child = self.0.begin_life(&kept)?;
        self.0.end_if_closed(&child);
        Ok(child)
    }

    /// Number of daemons that this host has started and that live, or are about to be started again. When a process has
    /// ended, it is counted until that is decided.
    pub fn daemons_alive(&self) -> usize {
        self.0.keeping.lock().alive
    }

    /// Keeps a daemon in reserve: it is started when tasks wait that no daemon can take, and no other daemon is being
    /// started for them. `make` makes its program, as for [`keep`](Self::keep); it should leave when it is idle. Then, and
    /// after a crash, it is in reserve again.
    pub fn reserve(&self, make: impl Fn(u32) -> Program + Send + Sync + 'static) {
        let kept = Arc::new(Kept {
            respawn: Respawn::Never,
            in_reserve: true,
            make: Box::new(make),
            surroundings: self.0.surroundings(),
            state: Mutex::default(),
        });
        self.0.keeping.lock().resting.push(kept);
        self.0.scales.store(true, Ordering::Relaxed);
        self.0.scale();
    }
}

impl Shared {
    /// What a daemon has from this process that is started later. To be called on the main thread.
    pub(super) fn surroundings(&self) -> Option<Arc<Surroundings>> {
        self.want_setups();
        // Without a working directory, there are none to keep.
        let now = Surroundings::now().ok();
        let mut last = self.surroundings.lock();
        // Of many daemons that are started together, all have the same.
        if last.as_deref() != now.as_ref() {
            *last = now.map(Arc::new);
        }
        last.clone()
    }

    /// Starts daemons of the reserve, one for each task that no daemon can take now, less those that are being started.
    /// The same for the fleet.
    pub(super) fn scale(self: &Arc<Self>) {
        if !self.scales.load(Ordering::Relaxed) || self.is_closed() {
            return;
        }
        self.scale_fleet();
        let unserved = self.state.lock().dispatcher.unserved();
        let called: Vec<_> = {
            let mut keeping = self.keeping.lock();
            let starting = keeping.alive - keeping.connected.len();
            let wanted = unserved.saturating_sub(starting);
            let left = keeping.resting.len().saturating_sub(wanted);
            let called = keeping.resting.split_off(left);
            keeping.alive += called.len();
            called
        };
        for kept in called {
            let shared = self.clone();
            io_thread::handle().spawn(async move { shared.begin_again(&kept) });
        }
    }

    fn begin_life(self: &Arc<Self>, kept: &Arc<Kept>) -> std::io::Result<Arc<Child>> {
        let lives = kept.state.lock().lives;
        let program = Program {
            surroundings: kept.surroundings.clone(),
            ..(kept.make)(lives)
        };
        let life = Arc::new(Life {
            kept: kept.clone(),
            state: Mutex::default(),
        });
        {
            let mut keeping = self.keeping.lock();
            keeping.alive += 1;
            keeping.given_up = None;
        }
        let (shared, its) = (self.clone(), life.clone());
        let started = self.start(&program, Some(life), move |child| {
            shared.process_gone(child);
            its.state.lock().exited = Some(Exited {
                pid: child.pid(),
                how: child.last_words(),
                connected: child.is_connected(),
            });
            shared.life_may_be_over(&its);
        });
        if started.is_err() {
            self.keeping.lock().alive -= 1;
        }
        started
    }

    /// A daemon has connected.
    pub(super) fn life_connected(&self, life: Option<Arc<Life>>, peer: PeerId) {
        let mut keeping = self.keeping.lock();
        keeping.given_up = None;
        let Some(life) = life else { return };
        let mut stage = life.state.lock();
        // One that has lost the host may connect again.
        if stage.peer.is_none() || stage.lost.is_some() {
            stage.lost = None;
            stage.peer = Some(peer);
            drop(stage);
            keeping.connected.insert(peer, life);
        }
    }

    /// The connection of a daemon has ended.
    pub(super) fn life_lost(self: &Arc<Self>, peer: PeerId, farewell: Option<Farewell>) {
        let life = self.keeping.lock().connected.remove(&peer);
        match life {
            Some(life) => {
                life.state.lock().lost = Some(farewell);
                self.life_may_be_over(&life);
            }
            None => self.look_whether_none_is_left(),
        }
    }

    fn life_may_be_over(self: &Arc<Self>, life: &Arc<Life>) {
        let Some(then) = life.settle() else { return };
        match then {
            Then::Again if !self.is_closed() => {
                // Not here: this may be a thread that others wait for.
                let (shared, kept) = (self.clone(), life.kept.clone());
                io_thread::handle().spawn(async move { shared.begin_again(&kept) });
            }
            Then::Again | Then::Nothing => self.keeping.lock().alive -= 1,
            Then::Rest => {
                let mut keeping = self.keeping.lock();
                keeping.alive -= 1;
                keeping.resting.push(life.kept.clone());
            }
            Then::GiveUp(peer, loss) => {
                let known = peer.and_then(|peer| self.known.lock().loss(peer));
                if let Some(known) = known {
                    known.add(&format!("; it is not started again: {CRASHES}"));
                }
                let mut keeping = self.keeping.lock();
                keeping.alive -= 1;
                keeping.given_up = Some(Arc::new(loss));
            }
        }
        // It counted as one that starts from the end of its connection on: perhaps no other was started because of it.
        self.scale();
        self.look_whether_none_is_left();
    }

    /// The next life. If it cannot begin, that counts as a crash.
    fn begin_again(self: &Arc<Self>, kept: &Arc<Kept>) {
        let started = {
            // Held, so that `close` ends the process, or none is started.
            let _starting = self.starting.lock();
            if self.is_closed() {
                self.keeping.lock().alive -= 1;
                return;
            }
            self.begin_life(kept)
        };
        if let Err(e) = started {
            let exited = Exited {
                pid: 0,
                how: format!("cannot be started: {e}"),
                connected: false,
            };
            let life = Arc::new(Life {
                kept: kept.clone(),
                state: Mutex::new(Stage {
                    exited: Some(exited),
                    ..Stage::default()
                }),
            });
            self.life_may_be_over(&life);
        } else {
            // `begin_life` has counted the new one, and the old one is counted still.
            self.keeping.lock().alive -= 1;
        }
    }

    /// If the last daemon has been given up, nobody would ever take the tasks that wait: they are resolved.
    pub(super) fn look_whether_none_is_left(self: &Arc<Self>) {
        let loss = self.given_up();
        if loss.is_some() {
            self.act(None, loss, |dispatcher, now, out| {
                dispatcher.handle(now, Event::NoneLeft, out);
            });
        }
    }

    /// The last daemon, if it was given up and none is on its way.
    pub(super) fn given_up(&self) -> Option<Arc<Loss>> {
        let elsewhere = self.fleet_given_up();
        if elsewhere.is_none() && self.fleet_is_expecting() {
            return None;
        }
        let keeping = self.keeping.lock();
        let none = keeping.alive == 0 && keeping.resting.is_empty();
        let loss = elsewhere.or_else(|| keeping.given_up.clone());
        loss.filter(|_| none)
    }
}
