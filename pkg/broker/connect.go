package broker

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"attentive.internal/pkg/backoff"
)

// The oldest server that has ResetConsumer, without which no owner can bring
// deliveries back into order.
const minMajor, minMinor = 2, 14

const (
	// requestTimeout bounds a JetStream request whose context has no deadline.
	requestTimeout = 5 * time.Second
	// closeTimeout bounds the end of a connection, once all is sent.
	closeTimeout = 5 * time.Second
	// A connection that answers no ping for two intervals is given up, well
	// within a lease of the default length.
	pingInterval = 4 * time.Second
	pingsMissed  = 2
	// So is one that takes no more, in so long, of what is sent. While the client
	// library writes it does nothing else: no ping is missed, and requests are not
	// sent, whatever their contexts say.
	writeTimeout = pingsMissed * pingInterval
	// The pauses between attempts to connect double from the first to the last.
	firstReconnectWait = 50 * time.Millisecond
	lastReconnectWait  = 2 * time.Second
)

// Options says how to reach the broker.
type Options struct {
	// URL is one address or several, separated by commas.
	URL string
	// Name is shown in the server's list of connections.
	Name string
	// CredentialsFile holds a NATS user's JWT and key, or the key alone; empty
	// means none. It is read again at each connect.
	CredentialsFile string
	// User and Password, or Token, are for servers that know passwords.
	User, Password, Token string
	// TLSFirst begins TLS before the server has said anything, as some are set up.
	TLSFirst bool
	// CAFile holds the certificates that the server's is signed by; empty means
	// those of the system. CertificateFile and KeyFile are for a server that asks
	// who the client is. All are read again at each connect.
	CAFile, CertificateFile, KeyFile string
	// InboxPrefix begins the subjects of answers; empty means _INBOX. A user who
	// may subscribe to it reads what others are answered.
	InboxPrefix string
	// InProcess is an embedded server to use instead of URL.
	InProcess nats.InProcessConnProvider
}

// Conn is a connection that outlives losses. Its methods may be called
// concurrently.
type Conn struct {
	// NC is the connection. It closes for good only by Close.
	NC *nats.Conn
	// JS speaks JetStream over NC.
	JS jetstream.JetStream

	log    *slog.Logger
	closed chan struct{} // closed once NC is closed for good

	mu     sync.Mutex    // guards the rest
	up     chan struct{} // closed while connected
	lost   chan struct{} // closed while not connected
	err    error         // why the last attempt to connect failed
	asking map[*asking]struct{}
}

// Connect returns once the broker has answered. From then on the connection
// reconnects by itself for as long as it takes.
//
// When the broker has not answered by the end of ctx, or is older than 2.14 or
// without JetStream, Connect gives up with an error that says what to do.
func Connect(ctx context.Context, opt Options, log *slog.Logger) (*Conn, error) {
	if opt.URL == "" && opt.InProcess == nil {
		return nil, errors.New("connect to broker: no URL; set broker.url, for example nats://127.0.0.1:4222")
	}
	who, err := opt.login()
	if err != nil {
		return nil, fmt.Errorf("connect to broker %s: %w", opt, err)
	}
	c := &Conn{
		log: log, closed: make(chan struct{}), up: make(chan struct{}), lost: make(chan struct{}),
		asking: make(map[*asking]struct{}),
	}
	close(c.lost)
	nc, err := nats.Connect(opt.URL, append(c.natsOptions(ctx, opt), who...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to broker %s: %w", opt, err)
	}
	c.NC = nc
	if err := c.first(ctx, opt); err != nil {
		nc.Close()
		<-c.closed
		return nil, err
	}
	return c, nil
}

// String returns where opt leads, without passwords.
func (o Options) String() string {
	if o.InProcess != nil {
		return "in this process"
	}
	urls := strings.Split(o.URL, ",")
	for i, u := range urls {
		if scheme, rest, ok := strings.Cut(u, "://"); ok {
			u = scheme + "://" + rest[strings.LastIndexByte(rest, '@')+1:]
		} else {
			u = u[strings.LastIndexByte(u, '@')+1:]
		}
		urls[i] = strings.TrimSpace(u)
	}
	return strings.Join(urls, ",")
}

func (c *Conn) natsOptions(ctx context.Context, opt Options) []nats.Option {
	options := []nats.Option{
		nats.Name(opt.Name),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.SkipHostLookup(),
		nats.SetCustomDialer(newDialer(ctx)),
		// A revoked credential may come back; giving up would need a restart.
		nats.IgnoreAuthErrorAbort(),
		nats.CustomReconnectDelay(reconnectDelay),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(pingsMissed),
		nats.FlusherTimeout(writeTimeout),
		nats.ReconnectOnFlusherError(),
		nats.ConnectHandler(func(*nats.Conn) { c.connected() }),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			c.log.Info("broker connection is back", "server", nc.ConnectedServerName())
			c.connected()
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { c.refused(err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { c.disconnected(err) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.refused(err)
			c.forbid(err)
			c.log.Warn("broker reports an error", "err", err)
		}),
		nats.ClosedHandler(func(*nats.Conn) { close(c.closed) }),
	}
	if opt.InProcess != nil {
		options = append(options, nats.InProcessServer(opt.InProcess))
	}
	return options
}

// reconnectDelay returns the pause after all servers were tried n times.
func reconnectDelay(n int) time.Duration {
	wait := lastReconnectWait
	if n < 6 {
		wait = min(wait, firstReconnectWait<<max(n-1, 0))
	}
	// Jitter, so that a restarted broker does not meet all workers at once.
	return wait/2 + rand.N(wait/2)
}

// first waits for the first connection and judges the server.
func (c *Conn) first(ctx context.Context, opt Options) error {
	if err := c.Await(ctx); err != nil {
		c.mu.Lock()
		cause := c.err
		c.mu.Unlock()
		if cause == nil {
			cause = cmp.Or(c.NC.LastError(), err)
		}
		return fmt.Errorf("connect to broker %s: %w; %s", opt, cause, remedy(cause))
	}
	if err := checkVersion(c.NC.ConnectedServerVersion()); err != nil {
		return fmt.Errorf("connect to broker %s: %w", opt, err)
	}
	js, err := jetstream.New(c.NC, jetstream.WithDefaultTimeout(requestTimeout))
	if err != nil {
		return fmt.Errorf("connect to broker %s: %w", opt, err)
	}
	if err := c.awaitJetStream(ctx, js); err != nil {
		return fmt.Errorf("connect to broker %s: %w", opt, err)
	}
	c.JS = js
	return nil
}

// askedAgain is when a question to JetStream that has no answer is asked again: a
// server that is just starting drops it.
const askedAgain = 10 * time.Second

// awaitJetStream returns once JetStream has answered. A cluster without a leader
// does not, and may be so for as long as an election takes.
func (c *Conn) awaitJetStream(ctx context.Context, js jetstream.JetStream) error {
	var said error
	for {
		once, done := context.WithTimeout(ctx, askedAgain)
		_, err := js.AccountInfo(once)
		done()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
			return fmt.Errorf("%w; enable JetStream on the server (nats-server -js) and for this account", err)
		}
		if said == nil {
			c.log.Warn("the broker is there and its JetStream is not yet: waiting", "err", err)
			said = err
		}
		if backoff.Sleep(ctx, lastReconnectWait) != nil {
			return fmt.Errorf("JetStream does not answer: %w; check that most members of the cluster run", said)
		}
	}
}

// remedy says what to do about a first connection that fails with err.
func remedy(err error) string {
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked),
		errors.Is(err, nats.ErrAccountAuthExpired), errors.Is(err, nats.ErrNkeysNotSupported):
		return "the broker answers but refuses this user: check broker.credentials"
	case errors.Is(err, nats.ErrSecureConnRequired), errors.Is(err, nats.ErrSecureConnWanted):
		return "the broker and broker.url disagree about TLS: use tls:// where it wants TLS"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the broker's certificate is not one for this address that is signed by broker.tls.ca, or by the system's authorities without it"
	}
	return "check that the broker runs and that broker.url is its address"
}

// checkVersion refuses servers that cannot do what package queue needs.
func checkVersion(version string) error {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, errMajor := strconv.Atoi(major)
	b, errMinor := strconv.Atoi(minor)
	if errMajor != nil || errMinor != nil {
		return fmt.Errorf("server version %.40q cannot be read; nats-server %d.%d or newer is needed", version, minMajor, minMinor)
	}
	if a < minMajor || a == minMajor && b < minMinor {
		return fmt.Errorf("server version %s is too old; upgrade nats-server to %d.%d or newer", version, minMajor, minMinor)
	}
	return nil
}

func (c *Conn) connected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.up: // already
		return
	default:
	}
	c.lost = make(chan struct{})
	close(c.up)
}

func (c *Conn) disconnected(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.lost: // already
		return
	default:
	}
	c.up = make(chan struct{})
	close(c.lost)
	if err != nil { // nil when we closed it
		c.log.Warn("broker connection is lost", "err", err)
	}
}

func (c *Conn) refused(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// Await returns once there is a connection. It fails with the cause of ctx, or
// with [nats.ErrConnectionClosed] when there will never be one again.
func (c *Conn) Await(ctx context.Context) error {
	c.mu.Lock()
	up := c.up
	c.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-c.closed:
		return nats.ErrConnectionClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Lost returns a channel that is closed once the connection there is now is
// lost. Without a connection it is closed already. Whoever depends on nothing
// having been missed takes the channel first and then subscribes: what happens
// in between closes it too.
func (c *Conn) Lost() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

// Closed returns a channel that is closed once the connection is closed for
// good. A program that did not close it itself should exit.
func (c *Conn) Closed() <-chan struct{} { return c.closed }

// Close sends what is buffered, and closes the connection for good. It takes ten seconds
// at most, whatever becomes of the client library; its error then says so.
func (c *Conn) Close(ctx context.Context) error {
	flushed := make(chan error, 1)
	go func() { // outlives Close only when the library is stuck
		flushed <- c.flush(ctx)
		c.NC.Close()
	}()
	limit := time.NewTimer(requestTimeout + closeTimeout)
	defer limit.Stop()
	select {
	case <-c.closed:
		return <-flushed
	case <-limit.C:
		return errors.New("close broker connection: the client library does not end it")
	}
}

// flush sends what is buffered.
func (c *Conn) flush(ctx context.Context) error {
	if !c.NC.IsConnected() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := c.NC.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("flush broker connection: %w", err)
	}
	return nil
}
