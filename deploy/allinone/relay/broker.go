// Package relay is the whole relay in one process: the broker embedded, and both
// workers beside it.
//
// It suits one machine. The broker listens on loopback only, without users, for
// publishers on the same machine; the workers are connected to it inside the
// process. What the broker acknowledged survives the death of the process; with
// SyncAlways also a power cut. Whoever stops it stops the workers first.
package relay

import (
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const (
	// readyTimeout is how long the broker may take to read what it has on disk.
	readyTimeout = time.Minute
	// readyPoll is how soon it is noticed that it has given up.
	readyPoll = 100 * time.Millisecond
)

// Sync says when the broker's writes reach the disk.
type Sync uint8

const (
	// SyncSometimes leaves it to the operating system, and sees to it every two
	// minutes: a power cut can lose what was acknowledged since.
	SyncSometimes Sync = iota
	// SyncAlways does so before a write is acknowledged. It costs most of the
	// throughput of publishing one by one.
	SyncAlways
)

// BrokerConfig is what a Broker needs.
type BrokerConfig struct {
	// Dir keeps everything. Two brokers must not share it.
	Dir string
	// Address is the host and port to listen on. The host is of this machine.
	Address string
	Sync    Sync
	Log     *slog.Logger
}

// Broker is a NATS server with JetStream.
type Broker struct{ server *server.Server }

// StartBroker starts a broker, and returns when it can be connected to. It must
// be stopped.
func StartBroker(cfg BrokerConfig) (*Broker, error) {
	host, port, err := loopback(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	// The server reports a taken port only in its log, and then ends the process.
	if err := probe(cfg.Address); err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "relay",
		Host:       host,
		Port:       port,
		JetStream:  true,
		StoreDir:   cfg.Dir,
		// The ceilings of the streams are reserved, not used: they must fit also
		// where the disk is small and the audiences are too.
		JetStreamMaxStore:  1 << 40,
		JetStreamMaxMemory: 64 << 20,
		SyncAlways:         cfg.Sync == SyncAlways,
		NoSigs:             true,
	})
	if err != nil {
		return nil, fmt.Errorf("start broker in %s: %w", cfg.Dir, err)
	}
	log := serverLog{log: cfg.Log.With("part", "nats-server"), fatal: make(chan error, 1)}
	s.SetLoggerV2(log, false, false, false)
	s.Start()
	b := &Broker{server: s}
	if err := b.ready(log.fatal); err != nil {
		b.Stop()
		return nil, fmt.Errorf("start broker in %s: %w", cfg.Dir, err)
	}
	return b, nil
}

// ready waits until the server can be connected to, or has given up.
func (b *Broker) ready(fatal <-chan error) error {
	for deadline := time.Now().Add(readyTimeout); !b.server.ReadyForConnections(readyPoll); {
		select {
		case err := <-fatal:
			return err
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready within %v; the log says why", readyTimeout)
		}
	}
	return nil
}

// CheckAddress says whether a broker may listen on the address, as far as can be
// said without trying: only on loopback, for it knows no users.
func CheckAddress(address string) error {
	_, _, err := loopback(address)
	return err
}

// loopback splits an address that must be of this machine.
func loopback(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("address %q: %w; use host:port", address, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", 0, fmt.Errorf("address %q is not on loopback: the embedded broker knows no users, so it serves only this machine; use 127.0.0.1", address)
	}
	if port, err = strconv.Atoi(text); err != nil || port < 1 || port > 65535 {
		return "", 0, fmt.Errorf("address %q: the port must be 1 to 65535", address)
	}
	return host, port, nil
}

func probe(address string) error {
	l, err := net.Listen("tcp", address) //nolint:noctx // it answers at once
	if err != nil {
		return fmt.Errorf("%w; stop what listens there, or choose another port", err)
	}
	return l.Close()
}

// URL is where it listens.
func (b *Broker) URL() string { return b.server.ClientURL() }

// InProcess connects within the process.
func (b *Broker) InProcess() nats.InProcessConnProvider { return b.server }

// Stop stops the broker and returns when it has.
func (b *Broker) Stop() {
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

// serverLog passes on what the server says: its warnings and errors, for it
// says much else.
type serverLog struct {
	log   *slog.Logger
	fatal chan error // has room for the first
}

func (l serverLog) Warnf(format string, v ...any) {
	l.log.Warn("broker warns", "text", fmt.Sprintf(format, v...))
}

func (l serverLog) Errorf(format string, v ...any) {
	l.log.Error("broker reports an error", "err", fmt.Errorf(format, v...))
}

// Fatalf is called when the server gives up. Its own way is to end the process.
func (l serverLog) Fatalf(format string, v ...any) {
	l.Errorf(format, v...)
	select {
	case l.fatal <- fmt.Errorf(format, v...):
	default: // not the first
	}
}

func (serverLog) Noticef(string, ...any) {}
func (serverLog) Debugf(string, ...any)  {}
func (serverLog) Tracef(string, ...any)  {}
