// The first sector of probe-guest's disk: reads what the table says into memory and starts Linux
// by its 16-bit boot protocol. Everything else (header fields, command line, addresses) was put
// into the image when it was built, so there is nothing to decide here.
//
// The BIOS reads below 1 MiB only: each piece lands at 0x10000 and is copied up with segments
// whose limit was widened in protected mode ("unreal mode"). The BIOS may narrow it again, so it
// is widened for each piece.

    // Where the data lies once the BIOS has loaded this sector at 0x7c00.
    .set DRIVE, 0x7c00 + 280
    .set PACKET, 0x7c00 + 284
    .set GDT, 0x7c00 + 304
    .set GDTR, 0x7c00 + 320
    .set MESSAGE, 0x7c00 + 328
    .set TABLE, 0x7c00 + 380

    .section .rodata.stackproof_mbr, "a", @progbits
    .globl stackproof_mbr
    .code16
stackproof_mbr:
    cli
    cld
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    sti
    mov byte ptr [DRIVE], dl
    mov si, offset TABLE

part:                                   // ebx: sector, ecx: sectors left, edi: destination
    mov ebx, dword ptr [si]
    mov ecx, dword ptr [si + 4]
    mov edi, dword ptr [si + 8]
    add si, 12
    test ecx, ecx
    jz start

piece:
    mov eax, 127                        // the most that one BIOS call reads
    cmp eax, ecx
    jbe 1f
    mov eax, ecx
1:  mov word ptr [PACKET + 2], ax
    mov dword ptr [PACKET + 8], ebx
    pushad
    mov si, offset PACKET
    mov ah, 0x42
    mov dl, byte ptr [DRIVE]
    int 0x13
    jc failed
    popad

    push ecx
    push esi
    cli
    lgdt [GDTR]
    mov edx, cr0
    or dl, 1
    mov cr0, edx
    jmp 2f
2:  mov bp, 8
    mov ds, bp
    mov es, bp
    and dl, 0xfe
    mov cr0, edx
    jmp 3f
3:  xor bp, bp
    mov ds, bp
    mov es, bp
    sti
    mov esi, 0x10000
    mov ecx, eax
    shl ecx, 7                          // 128 double words a sector
    .byte 0xf3, 0x67, 0x66, 0xa5        // rep movsd by esi and edi
    pop esi
    pop ecx
    add ebx, eax
    sub ecx, eax
    jnz piece
    jmp part

start:
    cli
    mov ax, 0x9000
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    mov ss, ax
    mov sp, 0xe000
    .byte 0xea, 0x00, 0x00, 0x20, 0x90  // far jump to 0x9020:0, Linux's setup code

failed:                                 // said on the first serial port, where someone reads
    mov si, offset MESSAGE
    mov dx, 0x3f8
4:  lodsb
    test al, al
    jz 5f
    out dx, al
    jmp 4b
5:  hlt
    jmp 5b

    .org stackproof_mbr + 280           // DRIVE
    .byte 0
    .org stackproof_mbr + 284           // PACKET of the BIOS's extended read
    .byte 16, 0
    .word 0                             // sectors
    .word 0, 0x1000                     // offset and segment of the buffer
    .long 0, 0                          // first sector
    .org stackproof_mbr + 304           // GDT: nothing, and one flat data segment
    .quad 0
    .byte 0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0
    .org stackproof_mbr + 320           // GDTR
    .word 15
    .long GDT
    .org stackproof_mbr + 328           // MESSAGE
    .asciz "probe-guest: the disk cannot be read\r\n"
    .org stackproof_mbr + 380           // TABLE, filled by the builder; ends with an empty part
    .fill 60, 1, 0
    .code64
    .previous
