// Package receiver is the other side of the workers for a benchmark: a local
// Attentive in a process of its own, which writes down every call and every SFTP
// connection at the moment it arrives, with who it came from.
//
// Workers do not say which of them calls. But an account is told by the host of
// its URL in lower case, and a client sends the host as its own configuration
// writes it: so a spelling of "localhost" for each process tells their calls
// apart without anything being different for the workers. See [Spelling].
package receiver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/bench/record"
	"attentive.internal/pkg/sandbox"
	"golang.org/x/sync/errgroup"
)

// Update is the attribute that numbers the updates of a subscriber.
const Update = "update"

// Arrival is a call that sets attributes, or an SFTP connection.
type Arrival struct {
	// At is when it arrived, by the wall clock.
	At time.Time `json:"at"`
	// Sender is the host of a call's URL as its sender writes it; empty for a
	// connection.
	Sender string `json:"sender,omitempty"`
	// Phone is the subscriber, and Number the value of [Update].
	Phone  string `json:"phone,omitempty"`
	Number int    `json:"number,omitempty"`
}

// Call reports whether a is a call.
func (a Arrival) Call() bool { return a.Sender != "" }

// Spellings is how many ways there are to write localhost.
const Spellings = 1 << len("localhost")

// Spelling returns the n-th way to write localhost, for n below [Spellings].
func Spelling(n int) string {
	name := []byte("localhost")
	for i := range name {
		if n>>i&1 == 1 {
			name[i] -= 'a' - 'A'
		}
	}
	return string(name)
}

// Addresses say where a receiver listens. All are of this machine.
type Addresses struct {
	// API, SFTP and Arrivals are host:port, Control a URL: that of the sandbox's
	// views.
	API, SFTP, Arrivals, Control string
	// HostKey is the SFTP server's, PublicKey the file of the key to encrypt to.
	HostKey, PublicKey string
}

// Config is what a receiver needs.
type Config struct {
	// Data is the directory that keeps everything.
	Data string
	// Bandwidth is how many bytes a second an SFTP connection takes; zero: all.
	Bandwidth int
}

// Serve writes the Addresses to out, as a line of JSON, and receives until ctx
// ends.
func Serve(ctx context.Context, cfg Config, out io.Writer) (err error) {
	s, err := sandbox.New(account.With(sandbox.Config{Data: cfg.Data, ArrivalLog: -1}))
	if err != nil {
		return err
	}
	if err := s.Listen(ctx); err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	g, running := errgroup.WithContext(running)
	defer func() {
		if err != nil {
			stop()
		}
		err = errors.Join(err, g.Wait())
		stop()
	}()
	g.Go(func() error { return s.Run(running) })
	relay, err := account.RelayFor(s, cfg.Data)
	if err != nil {
		return err
	}
	listen := func(serve func(net.Listener) error) (address string) {
		if err != nil {
			return ""
		}
		var config net.ListenConfig
		var l net.Listener
		if l, err = config.Listen(running, "tcp", "127.0.0.1:0"); err != nil {
			return ""
		}
		g.Go(func() error { return serve(l) })
		return l.Addr().String()
	}
	log := record.New[Arrival]()
	at := Addresses{
		API:      listen(func(l net.Listener) error { return serve(running, l, calls(log, s.API())) }),
		SFTP:     listen(func(l net.Listener) error { return s.SFTP().Serve(running, connections{l, log, cfg.Bandwidth}) }),
		Arrivals: listen(func(l net.Listener) error { return serve(running, l, lines(log)) }),
		Control:  s.ControlURL(),
		HostKey:  relay.HostKey, PublicKey: relay.PublicKey,
	}
	if err != nil {
		return fmt.Errorf("start receiver: %w", err)
	}
	return json.NewEncoder(out).Encode(at)
}

// serve serves HTTP on l until ctx ends.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // what is cut is nobody's any more
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// calls writes down calls before next sees them.
func calls(log *record.Record[Arrival], next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := time.Now()
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			return // cut before it was whole: no call
		}
		var call struct {
			User       struct{ Phone string }
			Properties map[string]any
		}
		if r.Method == http.MethodPost && json.Unmarshal(body, &call) == nil {
			number, _ := call.Properties[Update].(float64)
			log.Add(Arrival{At: at, Sender: strings.Split(r.Host, ":")[0], Phone: call.User.Phone, Number: int(number)})
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// arrivalsPath is what is followed. Others are not found: a program that wants
// somebody else's address, taken meanwhile, must not believe that it has it.
const arrivalsPath = "/arrivals"

// lines answers with everything that has arrived, an object a line, and goes on
// with what arrives, until the client has enough.
func lines(log *record.Record[Arrival]) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+arrivalsPath, func(w http.ResponseWriter, r *http.Request) {
		lines, flusher := json.NewEncoder(w), http.NewResponseController(w)
		for sent := 0; ; {
			arrivals, changed := log.After(sent)
			for _, a := range arrivals {
				if lines.Encode(a) != nil {
					return
				}
			}
			sent += len(arrivals)
			if flusher.Flush() != nil {
				return
			}
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			}
		}
	})
	return mux
}

// connections writes down the connections it accepts.
type connections struct {
	net.Listener
	log       *record.Record[Arrival]
	bandwidth int
}

func (l connections) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.log.Add(Arrival{At: time.Now()})
	if l.bandwidth > 0 {
		c = &narrow{Conn: c, every: time.Second / time.Duration(l.bandwidth)}
	}
	return c, nil
}

// narrow is a connection from which bytes come one after the other.
type narrow struct {
	net.Conn
	every time.Duration // from one byte to the next
}

func (c *narrow) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	time.Sleep(time.Duration(n) * c.every)
	return n, err
}
