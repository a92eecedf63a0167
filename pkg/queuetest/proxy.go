package queuetest

import (
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// Proxy stands between clients and a server, and cuts what passes through it.
// Unlike a restart, a cut leaves the server with all it knows of its clients'
// pull requests and deliveries. The methods may be called concurrently.
type Proxy struct {
	// URL is where the proxy listens.
	URL string

	target string
	work   sync.WaitGroup

	mu    sync.Mutex // guards the rest
	down  bool
	deaf  bool
	lag   time.Duration
	thaw  chan struct{} // closed unless it stands still
	sent  int64         // by clients
	limit int64         // of sent, at which all is cut once
	conns map[net.Conn]struct{}
}

// StartProxy runs a proxy to the server at url until the end of the test.
func StartProxy(t testing.TB, url string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		URL:    "nats://" + l.Addr().String(),
		target: strings.TrimPrefix(url, "nats://"),
		limit:  math.MaxInt64,
		thaw:   make(chan struct{}),
		conns:  make(map[net.Conn]struct{}),
	}
	close(p.thaw)
	p.work.Go(func() { accept(l, p.target, p.serve) })
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close proxy: %v", err)
		}
		p.Down()
		p.Thaw()
		p.work.Wait()
	})
	return p
}

// Cut closes all connections; new ones are accepted at once.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

// Swallow loses what the server says from now on, while it still hears its
// clients: their requests take effect and the answers never arrive. It lasts
// until the connections are cut.
func (p *Proxy) Swallow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deaf = true
}

// CutAfter closes all connections once clients have sent n more bytes, and loses
// what they send beyond; new ones are accepted at once.
func (p *Proxy) CutAfter(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = p.sent + n
}

// Sent returns how many bytes clients have sent.
func (p *Proxy) Sent() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

// Down closes all connections and refuses new ones until [Proxy.Up].
func (p *Proxy) Down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	p.cut()
}

// Up accepts connections again.
func (p *Proxy) Up() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}

// Lag delays what passes from now on, both ways, and keeps its order.
func (p *Proxy) Lag(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lag = d
}

// Freeze takes nothing from either side until [Proxy.Thaw], as a machine that is
// stopped or cut off: what is sent fills the buffers, and then nobody can send any
// more. Connections are still made.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.thaw = make(chan struct{})
}

// Thaw has all that was sent to a frozen proxy pass.
func (p *Proxy) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.thaw:
	default:
		close(p.thaw)
	}
}

// frozen returns what is closed when the proxy does not stand still.
func (p *Proxy) frozen() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.thaw
}

func (p *Proxy) cut() {
	for c := range p.conns {
		reset(c)
	}
	clear(p.conns)
	p.deaf = false
}

// reset closes c so that what is buffered is lost, as in a real cut.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // the connection is being destroyed either way
	}
	_ = c.Close()
}

func (p *Proxy) serve(client, server net.Conn) {
	if !p.admit(client, server) {
		reset(client)
		reset(server)
		return
	}
	p.work.Go(func() { p.pipe(client, server, &answers{p, client}) })
	p.work.Go(func() { p.pipe(server, client, &requests{p, server}) })
}

// accept calls serve with each client, and a connection to the server for it, until
// l is closed. A client whose server is away is cut.
func accept(l net.Listener, target string, serve func(client, server net.Conn)) {
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		server, err := net.Dial("tcp", target)
		if err != nil {
			reset(client)
			continue
		}
		serve(client, server)
	}
}

// admit remembers both connections, unless the proxy is down.
func (p *Proxy) admit(client, server net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return false
	}
	p.conns[client] = struct{}{}
	p.conns[server] = struct{}{}
	return true
}

// answers is the way from a server to its client.
type answers struct {
	proxy  *Proxy
	client net.Conn
}

func (a *answers) Write(b []byte) (int, error) {
	a.proxy.mu.Lock()
	deaf := a.proxy.deaf
	a.proxy.mu.Unlock()
	if deaf {
		return len(b), nil
	}
	return a.client.Write(b)
}

// requests is the way from a client to its server.
type requests struct {
	proxy  *Proxy
	server net.Conn
}

func (r *requests) Write(b []byte) (int, error) {
	r.proxy.mu.Lock()
	r.proxy.sent += int64(len(b))
	beyond := r.proxy.sent - r.proxy.limit
	if beyond >= 0 {
		r.proxy.limit = math.MaxInt64
	}
	r.proxy.mu.Unlock()
	if beyond < 0 {
		return r.server.Write(b)
	}
	n, _ := r.server.Write(b[:int64(len(b))-beyond]) // it is cut in any case
	r.proxy.Cut()
	return n, net.ErrClosed
}

// late is what was read, and when it may be passed on.
type late struct {
	data []byte
	due  time.Time
}

// pipe copies from src to w, which leads to dst, until either side ends; then
// it ends both.
func (p *Proxy) pipe(dst, src net.Conn, w io.Writer) {
	passing := make(chan late, 4096)
	var passed sync.WaitGroup
	passed.Go(func() {
		for l := range passing {
			time.Sleep(time.Until(l.due))
			if _, err := w.Write(l.data); err != nil {
				reset(src) // so that no more is read
			}
		}
	})
	for {
		buf := make([]byte, 32<<10)
		n, err := src.Read(buf)
		<-p.frozen()
		p.mu.Lock()
		lag := p.lag
		p.mu.Unlock()
		if n > 0 {
			passing <- late{buf[:n], time.Now().Add(lag)}
		}
		if err != nil {
			break // every way of ending means the same
		}
	}
	close(passing)
	passed.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range []net.Conn{dst, src} {
		delete(p.conns, c)
		reset(c)
	}
}
