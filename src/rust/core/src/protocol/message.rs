//! What host and daemon say to each other.
//!
//! Every message is the *meta* part of a [frame](super::frame); the payload of
//! a task and the value of a result travel as the frame's body, opaque bytes
//! that only the two ends' language runtimes understand.

use serde::{Deserialize, Serialize};

/// Version of this protocol. Host and daemon must agree on it exactly.
pub const VERSION: u16 = 8;

/// Numbers a task on one link, from 1 upwards, in the order of sending. Unlike
/// a task's id it is never used twice on a link, also when a task is retried.
pub type Seq = u64;

/// One L'Ecuyer-CMRG state: the six seeds of `parallel::nextRNGStream()`,
/// without the leading kind.
pub type Stream = [i32; 6];

/// A longer message of an error is cut to this many bytes for the log.
pub const MOST_OF_AN_ERROR: usize = 256;

/// Random bytes, or what was made of them.
pub type Nonce = [u8; 32];

/// How a daemon treats a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// An ordinary task: its traces are cleaned up afterwards.
    Task,
    /// One element of a map: as a task, but local daemons may not be set in it.
    Map,
    /// Set-up by `everywhere()`: what it leaves behind is kept.
    Setup,
}

/// From host to daemon, on the data channel.
///
/// Only links across the network use `Challenge`, `Control` and `Ping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDaemon {
    /// The hello is heard, but what follows it is to be proved: answer with
    /// [`ToHost::Proof`].
    Challenge {
        /// Random bytes, new for each connection.
        nonce: Nonce,
    },
    /// The hello was accepted; tasks may follow.
    Welcome {
        /// Milliseconds without a sign of life after which either end gives the other
        /// up; 0 where the system notices by itself.
        patience: u32,
        /// Whether the daemon may look again for a moment before it sleeps.
        spins: bool,
    },
    /// The hello was not accepted. The link closes.
    Refused {
        /// For the user of the daemon.
        reason: String,
    },
    /// Evaluate the body and answer with [`ToHost::Done`].
    Task {
        /// The number of the task on this link.
        seq: Seq,
        /// How to treat it.
        kind: Kind,
        /// State of the random number generator to start from; `None`: the daemon goes on with its own.
        stream: Option<Stream>,
        /// Constants that the body needs, sent before.
        constants: Option<u64>,
        /// See [`Control::Grant`].
        granted: Seq,
        /// Number of values that are attached to the body: see [`Layout`](crate::memory::Layout).
        attached: u32,
        /// The number of its handle in the session that has submitted it, by which what it prints is named; 0 if it has
        /// none.
        number: u32,
    },
    /// The body is what every daemon should know. It takes the place of an earlier one.
    Configuration,
    /// The body is what several tasks have in common. Keep it until told otherwise.
    Constants {
        /// By which tasks refer to them.
        id: u64,
        /// Number of values that are attached to the body.
        attached: u32,
    },
    /// No further task needs these.
    Forget {
        /// The id that they were sent with.
        id: u64,
    },
    /// Where a link has a single stream: what otherwise goes by the control channel.
    Control(Control),
    /// Is anybody there? Answer with [`ToHost::Pong`].
    Ping,
}

/// From host to daemon, on the control channel, which is read even while the
/// daemon evaluates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Nobody wants the result of this task any more: interrupt it if it runs,
    /// skip it if it has not begun.
    Cancel {
        /// The number of the task.
        seq: Seq,
    },
    /// Give back those of these tasks that have not begun, and answer with
    /// [`ToHost::Returned`].
    Recall {
        /// The number of the first.
        from: Seq,
        /// The number of the last.
        to: Seq,
    },
    /// Tasks with numbers up to this one may begin. Across the network, those beyond the largest
    /// number granted so far must not, until they are granted, too: a reply may be lost on its way,
    /// so the host counts every task as begun that was granted and is not replied to. On the host's own
    /// machine every task may begin once it has arrived.
    Grant {
        /// The number of the last task that may begin.
        to: Seq,
    },
    /// Leave for good, whatever `autoexit` says.
    End,
    /// On Linux, on the host's own machine, said first of all, before [`ToDaemon::Welcome`]. Two descriptors come along: of
    /// a ring, to which the daemon may write its messages, and of the host's board, on which it sets its mark.
    Ring {
        /// Number of the mark.
        mark: u32,
    },
}

/// From daemon to host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// First message on a link.
    Hello {
        /// The [`VERSION`] of the daemon.
        version: u16,
        /// Process id as the daemon sees it.
        pid: u32,
        /// The daemon's session directory, so that a host that launched it can
        /// remove it should the daemon be killed.
        tempdir: String,
        /// Tasks that it may run at once: 1, unless it passes them on to others.
        slots: u32,
    },
    /// The answer to [`ToDaemon::Challenge`]: see [`crate::tls::Secret`].
    Proof {
        /// Made of the nonce by the secret.
        proof: Nonce,
    },
    /// The answer to [`ToDaemon::Ping`].
    Pong,
    /// The outcome of a task; its value is the body.
    Done {
        /// The number of the task.
        seq: Seq,
        /// What became of it.
        outcome: Done,
        /// Microseconds that the daemon has been busy since it answered the task before.
        spent: u32,
        /// Bytes at the end of the body that are not the value, but what the language runtime has noted
        /// beside it: conditions and output.
        notes: u64,
        /// Message of an error, for the log: at most [`MOST_OF_AN_ERROR`] bytes.
        error: Option<Box<str>>,
    },
    /// A value that a running task sends ahead. It is the body.
    Report {
        /// The number of the task.
        seq: Seq,
    },
    /// What a daemon across the network says of itself, once, after it is welcome: for the log. It may say
    /// anything.
    About {
        /// Name of its machine.
        host: Box<str>,
        /// Process id there.
        pid: u32,
    },
    /// The numbers, in a daemon on the host's own machine, of two pipes from which the host can read what the daemon has
    /// written last, the earlier part first.
    Words {
        /// Numbers of descriptors.
        pipes: [u32; 2],
    },
    /// The answer to [`Control::Recall`]: the tasks with these numbers, or none if `from` is
    /// beyond `to`, have not begun and never will on this link.
    Returned {
        /// The number of the first.
        from: Seq,
        /// The number of the last.
        to: Seq,
    },
    /// The daemon begins no further task: those with numbers above this one have not begun and are the
    /// host's again. It follows the replies to the others, but for one that is still running, which will have
    /// none.
    Leaving {
        /// The number of the last task that was begun, or passed over.
        begun: Seq,
    },
    /// By the socket: what follows comes by the ring ([`Control::Ring`]). At first, everything comes by the socket.
    ByRing,
    /// By the ring: what follows comes by the socket.
    BySocket,
    /// By the socket, to wake the host: there may be something in the ring.
    Look,
}

/// What became of a task on a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// It was evaluated.
    Value,
    /// Its evaluation ended in an error, which is the body. Another attempt may do better, if the task has any left.
    Error,
    /// It was cancelled before it began. No body.
    Skipped,
    /// A relay has lost the daemon that it had sent the task to. The body says how, as a sentence, or is empty.
    Lost,
    /// As `Error`, where the daemon knows that there shall be no other attempt.
    Final,
}
