package plant

import (
	"bytes"
	"strings"
	"time"
)

// Send is a call of the API as a replica sent it, seen before the network did
// anything to it.
type Send struct {
	At      time.Time
	Replica string
	// Call is method and path, as the API names the endpoint.
	Call string
	// Account is the index of the API key in the layout.
	Account int
}

// bulkJob is followed by the id of a batch.
const bulkJob = "/v2/bulk/job/"

// sent takes notes of a piece in which a call begins. The worker writes the head
// of a call at once, and one call at a time to a connection.
func (p *Plant) sent(r *Replica, at time.Time, piece []byte) {
	head, _, whole := bytes.Cut(piece, []byte("\r\n\r\n"))
	if !whole {
		return
	}
	line, fields, _ := strings.Cut(string(head), "\r\n")
	words := strings.Fields(line)
	if len(words) != 3 || !strings.HasPrefix(words[2], "HTTP/") {
		return
	}
	path, _, _ := strings.Cut(words[1], "?")
	if _, ok := strings.CutPrefix(path, bulkJob); ok {
		path = bulkJob + "{id}"
	}
	s := Send{At: at, Replica: r.Name, Call: words[0] + " " + path, Account: -1}
	for field := range strings.SplitSeq(fields, "\r\n") {
		if value, ok := strings.CutPrefix(field, "Authorization: Bearer "); ok {
			for i := range p.cfg.Layout.API {
				if value == token(i) {
					s.Account = i
				}
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sends = append(p.sends, s)
}

// Sends returns the calls of the API that were sent so far, in that order.
func (p *Plant) Sends() []Send {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Send(nil), p.sends...)
}
