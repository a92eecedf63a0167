package audience

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"attentive.internal/pkg/spool"
)

// partitions is how many parts the persons beyond the budget are divided into: each
// is told apart in memory alone, so an audience may have that many times as many
// people as fit the budget.
const (
	partitionBits = 6
	partitions    = 1 << partitionBits
)

// overflow takes the rows that come once the set of people is full. Those of people
// in the set are duplicates and never come here. The others go to temporary files:
// the rows in their order, and who they name, by partition. In the end the set is
// given up; of each partition, people who come twice are marked; and the rows are
// read again in their order, without the marked ones. So the files of a segment are
// the same whatever the budget is.
type overflow struct {
	rows  *spool.File
	parts [partitions]*spool.File
	count uint64 // of rows

	row []byte // being written
}

// newOverflow makes the files.
func newOverflow(d *spool.Disk) (o *overflow, err error) {
	o = &overflow{}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close())
		}
	}()
	if o.rows, err = d.Create(); err != nil {
		return o, err
	}
	for i := range o.parts {
		if o.parts[i], err = d.Create(); err != nil {
			return o, err
		}
	}
	return o, nil
}

// close gives up the files.
func (o *overflow) close() error {
	var errs []error
	if o.rows != nil {
		errs = append(errs, o.rows.Close())
	}
	for _, f := range o.parts {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	o.rows, o.parts = nil, [partitions]*spool.File{}
	return errors.Join(errs...)
}

// add keeps a row of somebody who is not in the set.
func (o *overflow) add(who person, id []byte) error {
	o.row = append(o.row[:0], byte(who.kind))
	o.row = binary.AppendUvarint(o.row, uint64(len(id)))
	o.row = append(o.row, id...)
	if _, err := o.rows.Write(o.row); err != nil {
		return err
	}
	o.row = binary.AppendUvarint(o.row[:0], o.count)
	o.row = who.append(o.row)
	_, err := o.parts[who.partition()].Write(o.row)
	o.count++
	return err
}

// replay calls write with each row whose person comes for the first time, and
// returns how many others there are. Partitions are told apart by empty, an empty
// set each time.
func (o *overflow) replay(empty func(budget int64) *people, budget int64, write func(person, []byte) error) (duplicates uint64, err error) {
	again := make([]uint64, o.count/64+1) // a bit for each row
	if budget -= int64(8 * len(again)); budget < 0 {
		return 0, errBudget
	}
	for i, part := range o.parts {
		n, err := mark(part, empty(budget), again)
		if err != nil {
			return 0, err
		}
		duplicates += n
		o.parts[i] = nil
		if err := part.Close(); err != nil {
			return 0, err
		}
	}
	if err := o.rows.Rewind(); err != nil {
		return 0, err
	}
	rows := bufio.NewReaderSize(o.rows, blockBytes)
	for i := range o.count {
		who, id, err := readRow(rows, o.row)
		if err != nil {
			return 0, err
		}
		o.row = id
		if again[i/64]&(1<<(i%64)) != 0 {
			continue
		}
		if err := write(who, id); err != nil {
			return 0, err
		}
	}
	return duplicates, nil
}

// mark sets the bits of the rows of a partition whose person came before.
func mark(part *spool.File, seen *people, again []uint64) (duplicates uint64, err error) {
	if err := part.Rewind(); err != nil {
		return 0, err
	}
	in := bufio.NewReaderSize(part, blockBytes)
	for {
		row, err := binary.ReadUvarint(in)
		if err == io.EOF { //nolint:errorlint // only io.EOF itself is a clean end
			return duplicates, nil
		}
		if err != nil {
			return 0, err
		}
		who, err := seen.read(in)
		if err != nil {
			return 0, err
		}
		added, err := seen.add(who)
		if err != nil {
			return 0, err
		}
		if !added {
			again[row/64] |= 1 << (row % 64)
			duplicates++
		}
	}
}

// readRow reads what add has written of a row; id may use the room of buf. Only the
// kind of who is known.
func readRow(in *bufio.Reader, buf []byte) (who person, id []byte, err error) {
	k, err := in.ReadByte()
	if err != nil {
		return person{}, nil, damaged(err)
	}
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return person{}, nil, damaged(err)
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	id = buf[:n]
	if _, err := io.ReadFull(in, id); err != nil {
		return person{}, nil, damaged(err)
	}
	return person{kind: kind(k)}, id, nil
}

// damaged is the error of a file that ends too early. It is no clean end.
func damaged(err error) error { return fmt.Errorf("read a temporary file: %v", err) } //nolint:errorlint // as said

// append appends what read reads.
func (who person) append(b []byte) []byte {
	b = append(b, byte(who.kind))
	switch who.kind {
	case ofPlan, ofPhone:
		b = binary.LittleEndian.AppendUint64(b, who.key[0])
	default:
		b = binary.LittleEndian.AppendUint64(b, who.key[0])
		b = binary.LittleEndian.AppendUint64(b, who.key[1])
	}
	return b
}

// read reads a person of this set, or of one with the same random keys.
func (p *people) read(in *bufio.Reader) (person, error) {
	k, err := in.ReadByte()
	if err != nil {
		return person{}, damaged(err)
	}
	var b [16]byte
	n := 8
	if kind(k) == ofOther {
		n = 16
	}
	if _, err := io.ReadFull(in, b[:n]); err != nil {
		return person{}, damaged(err)
	}
	key := digest{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])}
	switch kind(k) {
	case ofPlan:
		return plannedPerson(key[0]), nil
	case ofPhone:
		return p.phonePerson(key[0]), nil
	}
	return otherPerson(key), nil
}
