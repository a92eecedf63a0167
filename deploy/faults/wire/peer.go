package wire

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// ErrNoPeer is returned when none of the processes is at the other end of a
// connection: it has ended, say.
var ErrNoPeer = errors.New("nobody at the other end")

// Peers finds out which process is at the other end of a connection from this
// machine. It works on Linux only. Its methods may be called concurrently: a look at all
// sockets of all processes is long, so all who ask while there is one share the next.
type Peers struct {
	processes func() []int

	looking sync.Mutex // held during a look

	mu   sync.Mutex // guards next
	next *look      // that has not begun; nil: nobody waits for one
}

// NewPeers returns Peers that looks for processes with these ids.
func NewPeers(processes func() []int) *Peers { return &Peers{processes: processes} }

// Of returns the id of the process at the other end of c.
func (p *Peers) Of(c net.Conn) (id int, err error) {
	ours, theirs := c.LocalAddr().(*net.TCPAddr), c.RemoteAddr().(*net.TCPAddr)
	l := p.look()
	if l.err != nil {
		return 0, fmt.Errorf("look for the peer of %s: %w", theirs, l.err)
	}
	id, ok := l.owners[l.sockets[ports{theirs.Port, ours.Port}]]
	if !ok {
		return 0, ErrNoPeer
	}
	return id, nil
}

// look returns one that began after it was called.
func (p *Peers) look() *look {
	p.mu.Lock()
	l := p.next
	first := l == nil
	if first {
		l = &look{done: make(chan struct{})}
		p.next = l
	}
	p.mu.Unlock()
	if first {
		p.looking.Lock()
		defer p.looking.Unlock()
		p.mu.Lock()
		p.next = nil
		p.mu.Unlock()
		l.take(p.processes())
	}
	<-l.done
	return l
}

// look is what was seen at a time.
type look struct {
	done    chan struct{} // closed when the rest is known
	sockets map[ports]string
	owners  map[string]int // ids of processes, by their sockets
	err     error
}

// ports are those of one end of a connection: its own, and that of the other end.
type ports struct{ local, remote int }

func (l *look) take(processes []int) {
	defer close(l.done)
	if l.sockets, l.err = sockets(); l.err != nil {
		return
	}
	l.owners = make(map[string]int)
	for _, id := range processes {
		for _, s := range socketsOf(id) {
			l.owners[s] = id
		}
	}
}

// sockets returns those of all connections of the machine.
func sockets() (map[ports]string, error) {
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return nil, fmt.Errorf("%w; Linux is needed", err)
	}
	defer func() { _ = f.Close() }() // only read from
	all := make(map[ports]string)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st queues tr retrnsmt uid timeout inode
		fields := strings.Fields(lines.Text())
		if len(fields) > 9 {
			all[ports{port(fields[1]), port(fields[2])}] = "socket:[" + fields[9] + "]"
		}
	}
	return all, lines.Err()
}

// port reads that of "0100007F:1F90".
func port(address string) int {
	_, hex, _ := strings.Cut(address, ":")
	n, err := strconv.ParseUint(hex, 16, 16)
	if err != nil {
		return 0 // the line of headings
	}
	return int(n)
}

// socketsOf returns what a process has open, sockets among it; nothing when it has
// ended.
func socketsOf(process int) (list []string) {
	dir := fmt.Sprintf("/proc/%d/fd", process)
	entries, _ := os.ReadDir(dir) // as far as it got
	for _, entry := range entries {
		if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil {
			list = append(list, target)
		}
	}
	return list
}
