// Package wire is the network between processes under test and what they talk
// to. It can be cut, delayed, narrowed, reset and frozen, for one process at a
// time, while all others go on.
//
//	process ──▶ Door ──▶ Wire: toxiproxy ──▶ server
//
// A Door is an address. Several processes may connect to one and the same, as
// they would to a server on the internet, and each is led to a Wire of its own.
// Cuts, delays and resets are toxiproxy's. A freeze is not: bytes that toxiproxy
// has accepted are delivered whatever becomes of their sender, or are lost though
// the connection lives on. Here what was sent into a freeze arrives when it is
// over, unless the sender has reset the connection meanwhile, which is what TCP
// does, and what a sender counts on that must not act late; or its kernel has, because
// nothing was acknowledged for as long as the sender has set (TCP_USER_TIMEOUT).
package wire

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// Network makes wires.
type Network struct{ server *toxiproxy.ApiServer }

// NewNetwork returns a Network without wires.
func NewNetwork() *Network {
	return &Network{toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())}
}

// Config says what a Wire is.
type Config struct {
	// Name tells it apart.
	Name string
	// Upstream is the host:port it leads to.
	Upstream string
	// Sent, unless nil, is told of each piece that a process has sent, when it
	// was read from the process and before anything else becomes of it. It is
	// called concurrently and must not keep the bytes.
	Sent func(at time.Time, piece []byte)
	// Unacknowledged is the TCP_USER_TIMEOUT that processes set: for how long what
	// they have sent is held here, since it was read, before their connection is reset.
	// Zero is for ever. The wire itself acknowledges at once, so their kernel does not do it.
	Unacknowledged time.Duration
}

// Wire leads from one process to one server. Its methods may be called
// concurrently. Those that do harm return what undoes it, to be called once.
//
// Toxics are put into a new proxy, which takes the place of the one before: all
// connections are reset when a cut or a toxic begins and when it ends. To add
// toxiproxy's toxics to a living connection, or to remove them, can wait for ever
// when that connection is just dying.
type Wire struct {
	cfg    Config
	server *toxiproxy.ApiServer

	mu      sync.Mutex       // guards the rest
	proxy   *toxiproxy.Proxy // nil while cut
	cuts    int
	toxics  map[*toxic]struct{}
	freezes int
	open    chan struct{} // closed while nothing is frozen
	trap    *trap         // nil when none is set
	links   map[*link]struct{}
}

// toxic is one of toxiproxy's, and its attributes as JSON.
type toxic struct {
	kind, attributes string
	directions       []string
}

// Wire returns a new wire that works. It must be closed.
func (n *Network) Wire(cfg Config) (*Wire, error) {
	w := &Wire{
		cfg: cfg, server: n.server, toxics: make(map[*toxic]struct{}),
		open: make(chan struct{}), links: make(map[*link]struct{}),
	}
	close(w.open)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w, w.renew()
}

// renew puts a proxy with the present toxics in the place of the present one, or
// none when the wire is cut. The lock is held.
func (w *Wire) renew() error {
	old := w.proxy
	w.proxy = nil
	if w.cuts == 0 {
		p := toxiproxy.NewProxy(w.server, w.cfg.Name, "127.0.0.1:0", w.cfg.Upstream)
		for t := range w.toxics {
			for _, direction := range t.directions {
				text := fmt.Sprintf(`{"name": "%p-%s", "type": %q, "stream": %q, "attributes": %s}`, t, direction, t.kind, direction, t.attributes)
				if _, err := p.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
					return fmt.Errorf("wire %s: add %s: %w", w.cfg.Name, t.kind, err)
				}
			}
		}
		if err := p.Start(); err != nil {
			return fmt.Errorf("wire %s: %w", w.cfg.Name, err)
		}
		w.proxy = p
	}
	if old != nil {
		old.Stop()
	}
	w.drop()
	return nil
}

// Close ends the wire and all connections over it.
func (w *Wire) Close() {
	_, _ = w.Cut() // to stop a proxy cannot fail
}

// Cut ends all connections and refuses new ones.
func (w *Wire) Cut() (mend func() error, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cuts++
	return func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.cuts--
		return w.renew()
	}, w.renew()
}

// Freeze lets nothing through and says so to nobody. New connections are
// accepted, as by a server that the network still knows the way to.
func (w *Wire) Freeze() (thaw func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.freeze()
	return func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.thaw()
	}
}

// freeze and thaw are called with the lock held.
func (w *Wire) freeze() {
	if w.freezes++; w.freezes == 1 {
		w.open = make(chan struct{})
	}
}

func (w *Wire) thaw() error {
	if w.freezes == 0 {
		return fmt.Errorf("wire %s: not frozen", w.cfg.Name)
	}
	if w.freezes--; w.freezes == 0 {
		close(w.open)
	}
	return nil
}

// FreezeFrom lets n more pieces through to the server and then freezes: with the
// next one on its way. Arrived is closed when that is so.
func (w *Wire) FreezeFrom(n int) (arrived <-chan struct{}, thaw func() error) {
	frozen := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trap = &trap{left: n, frozen: frozen}
	return frozen, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		triggered := w.trap.left < 0
		w.trap = nil
		if !triggered {
			return nil
		}
		return w.thaw()
	}
}

// trap freezes a wire when left is negative.
type trap struct {
	left   int
	frozen chan struct{}
}

// pass counts a piece on its way to the server.
func (w *Wire) pass() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.trap == nil {
		return
	}
	if w.trap.left--; w.trap.left == -1 {
		w.freeze()
		close(w.trap.frozen)
	}
}

// Delay lets every piece arrive that much later, in both directions.
func (w *Wire) Delay(by, jitter time.Duration) (undo func() error, err error) {
	attributes := fmt.Sprintf(`{"latency": %d, "jitter": %d}`, by.Milliseconds(), jitter.Milliseconds())
	return w.poison("latency", attributes, "upstream", "downstream")
}

// Narrow lets so many bytes a second through towards the server.
func (w *Wire) Narrow(bytesPerSecond int) (undo func() error, err error) {
	return w.poison("bandwidth", fmt.Sprintf(`{"rate": %d}`, max(bytesPerSecond/1000, 1)), "upstream")
}

// Reset resets each connection soon after anything is sent over it.
func (w *Wire) Reset(after time.Duration) (undo func() error, err error) {
	return w.poison("reset_peer", fmt.Sprintf(`{"timeout": %d}`, after.Milliseconds()), "upstream", "downstream")
}

// Swallow loses all that the server answers.
func (w *Wire) Swallow() (undo func() error, err error) {
	return w.poison("timeout", `{"timeout": 0}`, "downstream")
}

// poison adds a toxic in each of the directions.
func (w *Wire) poison(kind, attributes string, directions ...string) (undo func() error, err error) {
	t := &toxic{kind, attributes, directions}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.toxics[t] = struct{}{}
	return func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.toxics, t)
		return w.renew()
	}, w.renew()
}

// Drop resets all connections there are. What they hold is lost, as when the
// machine at their end loses power.
func (w *Wire) Drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drop()
}

func (w *Wire) drop() {
	for l := range w.links {
		l.reset()
	}
}

// tell tells of a piece that was sent.
func (w *Wire) tell(p piece) {
	if w.cfg.Sent != nil {
		w.cfg.Sent(p.at, p.bytes)
	}
}

// gate returns a channel that is closed while pieces may pass.
func (w *Wire) gate() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open
}

// connect gives l its way to the server, and reports whether there is one.
func (w *Wire) connect(ctx context.Context, l *link) bool {
	w.mu.Lock()
	proxy := w.proxy
	w.mu.Unlock()
	if proxy == nil {
		return false
	}
	dialled, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", proxy.Listen)
	if err != nil {
		return false
	}
	if !l.join(dialled.(*net.TCPConn)) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.proxy != proxy {
		return false
	}
	w.links[l] = struct{}{}
	return true
}

func (w *Wire) forget(l *link) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.links, l)
}

// dialTimeout is for an address of this very process.
const dialTimeout = 5 * time.Second
